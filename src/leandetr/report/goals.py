"""What a page says of a search: which file its goal asks for, and how it was found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leandetr.report.numbers import accuracy


def headline(goal: Mapping[str, Any]) -> str:
    """The verdict, and the file with what it found on photographs that chose nothing; "" while the search goes on."""
    return " ".join(filter(None, [goal["sentence"], reported(goal)]))


def reported(goal: Mapping[str, Any]) -> str:
    """The chosen file, and what it found on photographs that chose nothing; "" while the search goes on."""
    found = goal["reported"]
    if found is None:
        return ""
    said = f"{found['file']}: AP {accuracy(found['ap'])} on {found['images']} photographs that chose nothing"
    if goal["chosen"] == "teacher":
        return f"{said}."
    low, high = found["change_interval"]
    change = f"{found['ap'] - found['teacher_ap']:+.3f} ({low:+.3f} to {high:+.3f} on 95 % of other draws of them)"
    return f"{said}, the teacher {accuracy(found['teacher_ap'])}: {change}."


#: of the tables and the plot
LEGEND = (
    "AP in all tables is of one half of the validation photographs, which chose the file; a latency is the teacher's over the "
    "speed-up that was measured with both in turn. In the plot a line joins those that no other is both as fast as and as "
    "accurate as."
)


def search(goal: Mapping[str, Any]) -> dict[str, Any]:
    """What was tried, in order, and sentences about the rest."""
    ended = [f"The search ended because {goal['ended']}."] if goal["ended"] else []
    left_out = [f"Left out: {sentence}." for sentence in goal["left_out"]]
    tried = [(one["name"], one["why"], one["found"], one["mark"]) for one in goal["tried"]]
    return {"tried": tried, "said": [*ended, *left_out, LEGEND]}
