"""`compress`: teacher, student without and with it, quantized variants, exports, and one table of what each cost.

What a recipe gets wrong is said before anything is trained.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from leandetr.checks import check_benchmark, check_distillation, check_fit, check_model
from leandetr.data.coco import class_map_of, find_split
from leandetr.deployment.runtime import Runtime
from leandetr.deployment.runtimes import open_runtime
from leandetr.detectors.load import load
from leandetr.errors import UserError
from leandetr.files import read_json, write_json
from leandetr.quantization.config import scheme_config
from leandetr.recipe import Recipe, Study
from leandetr.report import Picture, write_report
from leandetr.report.validation import validation_pictures
from leandetr.steps import Made, Steps, millions
from leandetr.study import StudyRun

ROWS_OF_ONE = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


def compress(
    recipe: Recipe | Study, out: Path, command: str = "leandetr.compress", budget_minutes: float | None = None
) -> dict[str, Any]:
    """Run a recipe into `out` and return what `results.json` holds.

    The folder then has: `recipe.yaml`; `teacher`, `baseline`, `distilled` and one folder a quantized variant, each a detector
    that `load` takes; `onnx/` with the exported files; `predictions/` in COCO's results format, one file a row;
    `benchmark.json`; `results.json`, `report.md`, `report.html`, `images.html`; `steps/` with what was done and in how many
    seconds. A study has the same for its variants, and no `images.html`.

    budget_minutes: of a study, after which it stops where it can go on when it is called again.

    Raises UserError where the folder is not ours, and for every fault of the data, the models or the recipe.
    """
    if isinstance(recipe, Study):
        until = math.inf if budget_minutes is None else time.monotonic() + 60 * budget_minutes
        return StudyRun(recipe, Path(out), command).run(until)
    if budget_minutes is not None:
        raise UserError("a budget is for studies, and the recipe has no variants; leave out --budget-minutes")
    return Run(recipe, Path(out), command).run()


class Run:
    """One run of a recipe in a folder.

    Raises UserError for an unknown model, augmentation, distillation method, scheme or engine, for an option that is none, and
    for two quantized variants of one name.
    """

    def __init__(self, recipe: Recipe, out: Path, command: str) -> None:
        self.recipe, self.out, self.command = recipe, out, command
        self.steps = Steps(recipe, out)
        self.variants = {f"distilled-{q.name or q.scheme}": q for q in recipe.quantization}
        if len(self.variants) < len(recipe.quantization):
            raise UserError("quantization: two variants would be in one folder; give them a name each")
        for variant in recipe.quantization:
            scheme_config(variant.scheme, **variant.options)
        for model in (recipe.teacher, recipe.student):
            check_model(model)
        check_distillation(recipe.distillation)
        check_benchmark(recipe.benchmark)

    def run(self) -> dict[str, Any]:
        recipe, steps = self.recipe, self.steps
        steps.claim()
        steps.prepare()
        steps.rehearsed(self._rehearsal)
        teacher = steps.model("teacher", recipe.teacher, recipe.seed)
        baseline = steps.model("baseline", recipe.student, recipe.seed)
        distilled = steps.distilled("distilled", recipe.student, recipe.seed, teacher, recipe.distillation)
        made = {"teacher": teacher, "baseline": baseline, "distilled": distilled}
        made |= {name: steps.quantized(name, distilled, variant, recipe.seed) for name, variant in self.variants.items()}
        graphs = {name: steps.exported(detector) for name, detector in made.items()}
        rows, measured_on = self._rows(made, graphs)
        results = {
            "environment": measured_on | {"seed": recipe.seed},
            "command": self.command,
            "recipe": (self.out / "recipe.yaml").read_text(encoding="utf-8"),
            "steps": list(steps.done.values()),
            "rows": rows,
        }
        write_json(self.out / "results.json", results)
        write_report(results, self.out, self._pictures(made), class_map_of(find_split(steps.data, "val")).names)
        return results

    def _rehearsal(self) -> str:
        teacher, student = self.steps.untrained(self.recipe.teacher), self.steps.untrained(self.recipe.student)
        said = f"the recipe fits: teacher with {millions(teacher)}, student with {millions(student)}"
        check_fit(student, teacher, self.recipe.distillation, self.recipe.quantization)
        return said

    def _rows(self, made: Mapping[str, Made], graphs: Mapping[str, Made]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Accuracy of every artefact on every runtime, then the latency of all of them in one interleaved measurement, and the
        environment that it was taken in."""
        benchmark = self.recipe.benchmark
        pairs = [(name, engine) for engine in benchmark.runtimes for name in made]

        @functools.cache  # opened where a step needs it, and held once
        def runtime(name: str, engine: str) -> Runtime:
            return open_runtime((made if engine == "pytorch" else graphs)[name].path, benchmark.threads, engine)

        accuracies = [
            self.steps.evaluated(made[name], engine, functools.partial(runtime, name, engine)) for name, engine in pairs
        ]
        against = [pairs.index(("distilled" if name in self.variants else name, engine)) for name, engine in pairs]
        keys = {name: detector.key for name, detector in made.items()}
        written = self.steps.measured(keys, benchmark, lambda: [runtime(*pair) for pair in pairs], against)
        rows = [
            {"name": name} | {field: accuracy[field] for field in ROWS_OF_ONE} | latency
            for (name, _), accuracy, latency in zip(pairs, accuracies, written["measurements"], strict=True)
        ]
        return rows, written["environment"]

    def _pictures(self, names: Iterable[str]) -> list[Picture]:
        """Validation images with what each row's exported model found."""
        engines = self.recipe.benchmark.runtimes
        engine = "onnxruntime" if "onnxruntime" in engines else engines[0]
        found = {
            name: (read_json(self.out / "predictions" / f"{name}-{engine}.json"), load(self.out / name).class_map)
            for name in names
        }
        return validation_pictures(find_split(self.steps.data, "val"), found, self.recipe.gallery)
