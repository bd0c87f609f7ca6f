"""What a search has tried: each candidate with what it found and took, and what that comes to in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from leandetr.recipe import Goal
from leandetr.recipe.recipe import TEACHER
from leandetr.runs.ledger import Made


@dataclass(frozen=True)
class Candidate:
    """A file that was tried.

    detector, exported: what it is of, and the file. why: it was tried, a sentence. metrics: COCO's on the choosing photographs.
    measurement: in turn with the teacher's file; its latency is the teacher's own over its speed-up, so that all that were
    measured at different times are held against the same.
    """

    name: str
    detector: Made
    exported: Made
    why: str
    metrics: dict[str, Any]
    measurement: dict[str, Any]

    @property
    def ap(self) -> float:
        return self.metrics["ap"]

    @property
    def latency_ms(self) -> float:
        return self.measurement["latency_ms"]


def frontier(tried: Sequence[Candidate]) -> list[Candidate]:
    """Those that no other is both as fast as and as accurate as, the slowest first."""
    kept: list[Candidate] = []
    for one in sorted(tried, key=lambda one: (one.latency_ms, -one.ap)):
        if not kept or one.ap > kept[-1].ap:
            kept.append(one)
    return kept[::-1]


def verdict(goal: Goal, tried: Sequence[Candidate], teacher: Candidate) -> str:
    """Which file the goal asks for; where none meets it, that it is not met and what comes nearest."""
    chosen, met = goal.choose(tried, teacher)
    if met:
        best = "the most accurate" if goal.max_ap_drop is None else "the fastest"
        which = f"{best} of {len(tried)} that were tried" if len(tried) > 1 else "the only one tried"
        return f"The goal, {asked(goal)}, is met: {found(chosen, teacher)}, {which}, is the file."
    if goal.max_ap_drop is None:
        return f"The goal, {asked(goal)}, is not met: the fastest of {len(tried)} that were tried is {found(chosen, teacher)}."
    sentence = f"The goal, {asked(goal)}, is not met: the fastest of those that keep the accuracy is {found(chosen, teacher)}"
    others = [one for one in tried if goal.in_time(one)] or [min(tried, key=lambda one: one.latency_ms)]
    other = max(others, key=lambda one: one.ap)
    if other is chosen:
        return f"{sentence}."
    nearest = "the most accurate of those in time" if goal.in_time(other) else "the fastest of all"
    return f"{sentence}, and {nearest} is {found(other, teacher)}."


def asked(goal: Goal) -> str:
    """The goal in words.

    >>> asked(Goal(max_ap_drop=0.01, latency_ms=5))
    'at most 0.01 AP below the teacher and at most 5 ms a photograph on onnxruntime'
    """
    parts = [] if goal.max_ap_drop is None else [f"at most {goal.max_ap_drop:g} AP below the teacher"]
    if goal.latency_ms is None:
        return f"{parts[0]}, as fast as can be on {goal.engine}"
    return " and ".join([*parts, f"at most {goal.latency_ms:g} ms a photograph on {goal.engine}"])


def found(one: Candidate, teacher: Candidate) -> str:
    """A candidate and what it came to."""
    return f"{one.name} ({came_to(one, teacher)})"


def came_to(one: Candidate, teacher: Candidate) -> str:
    """A candidate's AP and latency in words, beside the teacher's."""
    if one.name == TEACHER:
        return f"AP {one.ap:.3f}, {one.latency_ms:.2f} ms"
    change, faster = f"{one.ap - teacher.ap:+.3f}", f"{teacher.latency_ms / one.latency_ms:.2f} times as fast"
    return f"AP {one.ap:.3f}, {change}; {one.latency_ms:.2f} ms, {faster}"
