"""One run of a recipe with a goal: the search in its folder, which stops and goes on as it is told, and the page that says how
the file was found."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

from leandetr.data.coco import class_map_of
from leandetr.deployment.benchmark import environment
from leandetr.deployment.runtimes import open_runtime
from leandetr.detectors.checkpoints.load import load_class_map
from leandetr.errors import UserError
from leandetr.evaluation.bootstrap import interval
from leandetr.files import read_json, write_json
from leandetr.recipe import GoalRecipe
from leandetr.recipe.recipe import TEACHER
from leandetr.recipe.rows import Plan
from leandetr.report import Row, write_images, write_report
from leandetr.report.validation import validation_pictures
from leandetr.runs.candidates import Candidate, came_to, found, frontier, verdict
from leandetr.runs.ledger import Step
from leandetr.runs.search import Search
from leandetr.runs.structures import REPORTING
from leandetr.runs.table import ResultTable
from leandetr.training.fit import OutOfTime

#: what is tried in which order, before it is known how far that goes
ORDER = {
    "teacher": "as it is, on the engine: what everything is held against",
    "teacher-int8": "in integers, which takes no training",
    "trimmed": "fewer decoder layers, queries and pixels as far as they cost nothing; no training",
    "L-layers-N-queries-SIZE": "trimmed further, to a target; judged in integers before any training",
    "...-pruned-T": "trimmed half of the way and pruned for the rest; judged in integers before any training",
    "...-trained": "the more accurate of the two, trained from the teacher, in integers",
    "...-mixed": "integers layer by layer, where all in integers lose what the goal keeps and the float detector does not",
    "chosen": "what the goal asks for, reported on photographs that chose nothing",
}


class GoalRun:
    """A search in a folder."""

    def __init__(self, recipe: GoalRecipe, out: Path, command: str = "") -> None:
        self.recipe, self.out, self.command = recipe, out, command
        self.search = Search(recipe, out)
        self.steps = self.search.steps
        self.chosen: Candidate | None = None
        self.reported: dict[str, Any] | None = None
        self.left = "The search goes on."

    def run(self, until: float = math.inf, jobs: int = 1) -> dict[str, Any]:
        """As `Run.run`."""
        if jobs > 1:
            raise UserError("--jobs: what a search tries next depends on what it has found; leave it out")
        ledger = self.steps.ledger
        with self.steps.claimed():
            ledger.until = until
            try:
                for candidate in self.search.go():
                    ledger.console.print(f"  {found(candidate, self.search.teacher)}", highlight=False, soft_wrap=True)
                    if ledger.worked:
                        self._written()
                self._report()
                self.left = ""
            except OutOfTime as stop:
                self.left = f"The search is not over: the next is {stop}; the same command goes on."
            if not ledger.worked and not self.left:
                ledger.console.print(f"{self.out} was finished before, and nothing that it was made from has changed since")
            return self._written()

    def planned(self) -> list[Step]:
        """The steps that are done, and the one after them; nothing is written."""
        ledger = self.steps.ledger
        ledger.until = -math.inf
        try:
            for _ in self.search.go():
                pass
            self._report()
        except OutOfTime as stop:
            return [*ledger.steps.values(), Step(str(stop), "", False, None, "")]
        return list(ledger.steps.values())

    def _report(self) -> None:
        """The chosen file and the teacher's on the photographs that chose nothing."""
        goal, teacher = self.recipe.goal, self.search.teacher
        self.chosen, _ = goal.choose(self.search.tried, teacher)
        file = self.steps.chosen(self.chosen.name, self.chosen.exported)
        metrics = {}
        for one in (teacher, self.chosen):
            opened = functools.partial(open_runtime, one.exported.path, engine=goal.engine)
            metrics[one.name] = self.steps.evaluated(one.detector, goal.engine, opened, REPORTING) or {}
        mine, whole = metrics[self.chosen.name], metrics[TEACHER]
        self.reported = {
            "file": str(file),
            "images": len(read_json(self.steps.split(REPORTING).annotations)["images"]),
            "ap": mine["ap"],
            "teacher_ap": whole["ap"],
            "change_interval": interval([mine["draws"]], [whole["draws"]]),
        }

    def _written(self) -> dict[str, Any]:
        """Write what has been found so far."""
        search = self.search
        results: dict[str, Any] = {
            "environment": environment() | {"seeds": [self.recipe.seed]},
            "command": self.command,
            "recipe": (self.out / "recipe.yaml").read_text(encoding="utf-8"),
            "steps": self.steps.ledger.done(),
            "seeds": [self.recipe.seed],
            "epochs": [],
            "left": self.left,
            "rows": self._rows(),
            "goal": None,
        }
        if search.tried:
            teacher, tried = search.teacher, search.tried
            chosen, met = self.recipe.goal.choose(tried, teacher)
            results["goal"] = {
                "sentence": verdict(self.recipe.goal, tried, teacher) if self.chosen else "",
                "met": met,
                "chosen": chosen.name,
                "tried": [
                    {"name": one.name, "why": one.why, "found": came_to(one, teacher), "mark": row.get("mark", "")}
                    for one, row in zip(tried, results["rows"], strict=True)
                ],
                "left_out": search.left_out,
                "ended": search.ended,
                "reported": self.reported,
            }
            self._write_images()
        write_json(self.out / "results.json", results)
        write_report(results, self.out, images=(self.out / "images.html").exists())
        return results

    def _rows(self) -> list[Row]:
        """A row a candidate, held against the teacher."""
        tried, engine, seed = self.search.tried, self.recipe.goal.engine, self.recipe.seed
        plans = {one.name: Plan([seed], None if one.name == TEACHER else TEACHER, TEACHER) for one in tried}
        table = ResultTable(plans, [engine])
        for one in tried:
            table.found[one.name, engine] = {seed: one.metrics}
        table.measurements = [one.measurement for one in tried]
        rows, best = table.rows(), {one.name for one in frontier(tried)}
        for row in rows:
            if self.chosen is not None and row["name"] == self.chosen.name:
                row["mark"] = "chosen"
            elif row["name"] in best:
                row["mark"] = "frontier"
        return rows

    def _write_images(self) -> None:
        """Photographs that chose nothing, with what the teacher and the chosen file found."""
        if self.chosen is None or not self.recipe.gallery:
            return
        shown = {}
        for name in dict.fromkeys((TEACHER, self.chosen.name)):
            results = read_json(self.out / "predictions" / f"{name}-{self.recipe.goal.engine}-{REPORTING}.json")
            shown[name] = (results, load_class_map(self.out / name))
        split = self.steps.split(REPORTING)
        write_images(validation_pictures(split, shown, self.recipe.gallery), class_map_of(split).names, self.out)
