"""The script that is to run on a borrowed GPU runs from end to end, and a part that fails does not cost the others."""

import json
import runpy
from pathlib import Path

import pytest

from leandetr.errors import UserError

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu.py"


@pytest.fixture
def run(monkeypatch, tmp_path):
    """run(*arguments): the rows of the JSON, by name, and the table."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    script = runpy.run_path(str(SCRIPT))

    def engines(self):
        raise UserError("no engine here")

    def compiled(self):
        pass

    for part in (engines, compiled):  # which take long
        monkeypatch.setattr(script["Bench"], part.__name__, part)

    def measured(*arguments):
        script["main"](["--out", str(tmp_path), "--quick", *arguments])
        rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
        return {row["what"]: row for row in rows}, (tmp_path / "gpu.md").read_text()

    return measured


@pytest.mark.slow
def test_every_part_is_measured_or_says_why_not(run):
    rows, table = run("--before", str(SCRIPT.parents[1]))
    measured = {name for name, row in rows.items() if row.get("value", 0) > 0}
    assert measured >= {"step", "step in train", "DETRDistill step", "low-bit step", "before over now: step", "evaluation"}
    assert rows["engines"]["error"] == "UserError: no engine here"
    assert all(f"| {name} |" in table for name in rows)


def test_what_there_is_no_time_for_is_named(run):
    rows, _ = run("--minutes", "0")
    assert {row["error"] for row in rows.values()} == {"left out: no time"}
    assert list(rows) == ["steps", "reading", "earlier", "evaluation", "engines", "compiled"]
