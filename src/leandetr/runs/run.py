"""One run of a recipe: variants of a student, seeds, quantizations, exports, and one table of what each is worth and costs.

The first seed of every variant comes before the second of any, so that the table says something early. It is written again
after every step, and everything in it comes from the steps' notes and products: a run that was stopped, by its budget or by a
kill, goes on where it was.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from leandetr.data.coco import class_map_of
from leandetr.deployment.benchmark import environment
from leandetr.deployment.engines import ENGINES
from leandetr.deployment.runtime import Runtime
from leandetr.deployment.runtimes import open_runtime
from leandetr.detectors.checkpoints.load import load, load_class_map
from leandetr.detectors.detector import Detector
from leandetr.distillation.teacher import Teacher
from leandetr.errors import UserError
from leandetr.files import read_json, write_json
from leandetr.recipe import Benchmark, GoalRecipe, Model, Quantization, Recipe, Variant
from leandetr.recipe.recipe import TEACHER
from leandetr.recipe.rows import from_outside, learns_from_shared, planned_rows, teachers_of
from leandetr.report import results_table, write_images, write_report
from leandetr.report.validation import validation_pictures
from leandetr.runs.checks import check_fit, check_names, check_quantizations
from leandetr.runs.goal_run import GoalRun
from leandetr.runs.lanes import gpus_of, work_in_lanes
from leandetr.runs.ledger import Made, Step
from leandetr.runs.rounds import going_on, rounds_of
from leandetr.runs.steps import Steps, millions
from leandetr.runs.table import ResultTable
from leandetr.training.callbacks import ap_by_epoch
from leandetr.training.fit import OutOfTime
from leandetr.training.trainer import Diverged
from leandetr.verbs import open_teacher


def compress(
    recipe: Recipe | GoalRecipe,
    out: Path,
    command: str = "leandetr.compress",
    budget_minutes: float | None = None,
    jobs: int = 1,
) -> dict[str, Any]:
    """Run a recipe into `out` and return what `results.json` holds.

    The folder then has: `recipe.yaml`; the shared `teacher`, one folder a variant, a trimming and a quantization (`NAME-seed-N`
    where the recipe names variants or several seeds), `pruned-...` of what a student is pruned to before its training, each a
    detector that `load` takes; `onnx/` with the exported files;
    `predictions/` in COCO's results format; `benchmark.json`; `results.json`, `report.md`, `report.html`, `images.html`;
    `steps/` with what was done, from what and in how many seconds. A recipe with a goal leaves a folder for each detector that
    its search made, and `chosen.onnx`.

    Args:
        budget_minutes: after which it stops, to go on when it is called again; `left` of the results says what remains.
        jobs: how many variants are trained side by side, each in a process of its own, on the GPUs in turn where there are any.

    Raises UserError where the folder is not ours, for every fault of the data, the models or the recipe, and in the end where a
    training has diverged; the same call tries it again.
    """
    until = math.inf if budget_minutes is None else time.monotonic() + 60 * budget_minutes
    if isinstance(recipe, GoalRecipe):
        return GoalRun(recipe, Path(out), command).run(until, jobs)
    return Run(recipe, Path(out), command).run(until, jobs)


class Run:
    """One run of a recipe in a folder.

    The shared teacher is in `teacher`, one that variants name for themselves in `teacher-NAME` of the first that does.

    Raises UserError for an unknown model, augmentation, distillation method, scheme or engine, and for an option that is none.
    """

    def __init__(self, recipe: Recipe, out: Path, command: str = "") -> None:
        self.recipe, self.out, self.command = recipe, out, command
        self.steps = Steps(recipe, out)
        self.variants, self.seeds = recipe.compared(), recipe.all_seeds()
        self.benchmark = recipe.measured_on()
        self.engines = self.benchmark.runtimes if self.benchmark else ["pytorch"]
        self.teachers, self.teacher_of = teachers_of(recipe)
        self.table = ResultTable(planned_rows(recipe), self.engines)
        self.failed: dict[str, Diverged] = {}
        self.in_lane = False  # the table in the folder is then another process's
        self.environment: dict[str, Any] | None = None  # of the benchmark
        check_names([*self.teachers.values(), *(variant.student for variant in self.variants)], self.variants, self.benchmark)

    def run(self, until: float = math.inf, jobs: int = 1) -> dict[str, Any]:
        """Do what there is time for until `until` of `time.monotonic()`, and return what `results.json` holds; its `left` says
        what remains to be done, "" where nothing does."""
        with self.steps.claimed():
            return self._run(until, jobs)

    def _run(self, until: float, jobs: int) -> dict[str, Any]:
        ledger = self.steps.ledger
        self.steps.prepare()
        self.steps.rehearsed(self._rehearsal)
        ledger.until = -math.inf
        self._work()  # finds what earlier calls have finished, so that the table has it from the start
        ledger.until = until
        if jobs > 1:
            self._side_by_side(jobs)
        self._work()
        self._write_images()
        results = self._written()
        if self.failed:
            raise UserError(f"{self._failures()}; the other rows are in {self.out / 'report.md'}")
        if not ledger.worked and not results["left"]:
            read = ", ".join(f"{what} {state}" for what, state in self.steps.data_state.items())
            self._say(f"{self.out} was finished before, and nothing that it was made from has changed since ({read})")
        return results

    def planned(self) -> list[Step]:
        """All steps in order, done or not, without doing any; nothing is written."""
        self.steps.ledger.rehearsing = True
        self.steps.prepare()
        self.steps.rehearsed(self._rehearsal)
        self._work()
        steps, ledger = list(self.steps.ledger.steps.values()), self.steps.ledger
        expected = {kind: ledger.expected(kind) for kind in {step.kind for step in steps if not step.done}}
        return [step if step.done else step._replace(seconds=expected[step.kind]) for step in steps]

    def _train_teachers(self) -> dict[str, Made]:
        """The teachers that there is time for, by name."""
        teachers = {}
        for name, model in self.teachers.items():
            with self._attempt(name):
                teachers[name] = self.steps.teacher(name, model, self.seeds[0])
                if not from_outside(model):
                    self._evaluate(name, teachers[name], self.seeds[0])
        return teachers

    def _train_variant(self, variant: Variant, seed: int, teachers: Mapping[str, Made]) -> None:
        """Train a variant with one seed, trim and quantize it, evaluate what came of it."""
        name = self.recipe.folder(variant.name, seed)
        *earlier, last = rounds_of(variant.student)
        made = None
        for number, student in enumerate(earlier, 1):
            made = self._trained(f"{name}-round-{number}", going_on(made, student), variant, seed, teachers)
        trained = self._trained(name, going_on(made, last), variant, seed, teachers)
        self._evaluate(variant.name, trained, seed)
        for row, goal in variant.trimmed().items():
            trained = self.steps.trimmed(self.recipe.folder(row, seed), trained, goal)
            self._evaluate(row, trained, seed)
        for row, quantization in variant.quantized().items():
            shared = learns_from_shared(quantization, self.recipe)
            name = self.recipe.folder(row, seed)
            if name not in self.failed and (not shared or TEACHER in teachers):
                with self._attempt(name):
                    taught = self.steps.quantized(name, trained, quantization, seed, teachers[TEACHER] if shared else None)
                    self._evaluate(row, taught, seed)

    def _trained(self, name: str, student: Model, variant: Variant, seed: int, teachers: Mapping[str, Made]) -> Made:
        if variant.distillation is None:
            return self.steps.model(name, student, seed)
        return self.steps.distilled(name, student, seed, teachers[self.teacher_of[variant.name]], variant.distillation)

    def _work(self) -> None:
        """Go through all steps in order, past those that there is no time for."""
        teachers = self._train_teachers()
        for variant, seed in self._able(teachers):
            with self._attempt(self.recipe.folder(variant.name, seed)):
                self._train_variant(variant, seed, teachers)
        if self.benchmark is not None and (self.steps.ledger.rehearsing or not self.table.missing()):
            with self._attempt("benchmark"):
                self._measure(self.benchmark)

    def _able(self, teachers: Mapping[str, Made]) -> list[tuple[Variant, int]]:
        """What can be trained, in order: what has its teacher, and has not diverged in this run."""
        return [
            (variant, seed)
            for seed in self.seeds
            for variant in self.variants
            if (variant.distillation is None or self.teacher_of[variant.name] in teachers)
            and self.recipe.folder(variant.name, seed) not in self.failed
        ]

    def work_on(self, variant: str, seed: int, until: float) -> dict[str, str]:
        """One variant with one seed, of a run whose teachers are done; returns the trainings that diverged, and what is said of
        them."""
        self.in_lane, self.steps.ledger.until = True, until
        self.steps.prepare()
        chosen = next(one for one in self.variants if one.name == variant)
        with self._attempt(self.recipe.folder(variant, seed)):
            self._train_variant(chosen, seed, self._train_teachers())
        return {name: str(error) for name, error in self.failed.items()}

    def _side_by_side(self, jobs: int) -> None:
        """Have the variants worked on by processes of their own; the table takes in what each has finished."""
        until, ledger = self.steps.ledger.until, self.steps.ledger
        teachers = self._train_teachers()
        for variant in self.variants:
            with self._attempt(variant.name):
                self.steps.prepared(variant.student)  # shared by variants and seeds
        waiting = {
            (variant.name, seed): variant
            for variant, seed in self._able(teachers)
            if any(self.table.lacks(row, seed) for row in (variant.name, *variant.trimmed(), *variant.quantized()))
        }
        if waiting and (gpus := gpus_of(jobs)):
            shared = "; those of one GPU share its memory and time" if len(set(gpus)) < jobs else ""
            self._say(f"{jobs} jobs side by side, each on its GPU: {', '.join(gpus)}{shared}")
        for (name, seed), diverged in work_in_lanes(self.out, list(waiting), jobs, until):
            self._say(f"{self.recipe.folder(name, seed)}: worked on")
            self.failed |= {failed: Diverged(said) for failed, said in diverged.items()}
            ledger.until = -math.inf
            with self._attempt(name):
                self._train_variant(waiting[name, seed], seed, teachers)
            ledger.until = until
            ledger.console.print(results_table(self._written()["rows"], self.recipe.epochs))

    @contextmanager
    def _attempt(self, name: str) -> Iterator[None]:
        """Leave out what there is no time for; note a training that diverges, and go on with the next."""
        try:
            yield
        except OutOfTime:
            return
        except Diverged as error:
            self.failed[name] = error
            self._say(f"{name}: {error}")

    def _failures(self) -> str:
        return "; ".join(f"{name}: {error}" for name, error in self.failed.items())

    def _say(self, text: str) -> None:
        self.steps.ledger.console.print(text, markup=False, soft_wrap=True)

    def _evaluate(self, row: str, detector: Made, seed: int) -> None:
        """The accuracy of a detector on every engine, into the table."""
        threads = self.benchmark.threads if self.benchmark else None
        for engine in self.engines:
            artefact = self.steps.exported(detector) if ENGINES[engine].files else detector
            opened = functools.partial(open_runtime, artefact.path, threads, engine)
            metrics = self.steps.evaluated(detector, engine, opened)
            if seed == self.seeds[0]:
                self.table.first[row, engine] = artefact
            if metrics is None:
                continue
            found = self.table.found[row, engine]
            new = seed not in found
            found[seed] = metrics | {"curve": ap_by_epoch(detector.path / "training")}
            ledger = self.steps.ledger
            if new and ledger.until > 0 and not (ledger.rehearsing or self.in_lane):  # none that was there before
                ledger.console.print(results_table(self._written()["rows"], self.recipe.epochs))

    def _measure(self, benchmark: Benchmark) -> None:
        """The latency of the first seed's artefacts; a quantized one against its float row."""
        artefacts = {" on ".join(pair): self.table.first[pair] for pair in self.table.pairs}

        @functools.cache  # an artefact is held once
        def runtime(path: Path, engine: str) -> Runtime:
            return open_runtime(path, benchmark.threads, engine)

        def opened() -> list[Runtime]:
            return [runtime(self.table.first[row, engine].path, engine) for row, engine in self.table.pairs]

        measured = self.steps.measured(artefacts, benchmark, opened, self.table.float_rows())
        if measured is not None:
            self.table.measurements, self.environment = measured["measurements"], measured["environment"]

    def _left(self) -> str:
        missing = self.table.missing()
        planned = sum(len(plan.seeds) for plan in self.table.plans.values())
        if not missing and (self.benchmark is None or self.table.measurements):
            return ""
        if not missing:
            return "The benchmark is left; the same command does it."
        left = f"{len(missing)} of {planned} results are left, the next is {missing[0]}; the same command goes on."
        return f"{left} Failed: {self._failures()}." if self.failed else left

    def _written(self) -> dict[str, Any]:
        """Write the table as far as it goes."""
        results = {
            "environment": (self.environment or environment()) | {"seeds": self.seeds},
            "command": self.command,
            "recipe": (self.out / "recipe.yaml").read_text(encoding="utf-8"),
            "steps": self.steps.ledger.done(),
            "seeds": self.seeds,
            "epochs": self.recipe.epochs,
            "left": self._left(),
            "rows": self.table.rows(),
        }
        write_json(self.out / "results.json", results)
        write_report(results, self.out, images=(self.out / "images.html").exists())
        return results

    def _write_images(self) -> None:
        """Validation images with what the first seed of each row found, on an engine rather than on PyTorch."""
        engine = next((engine for engine in self.engines if ENGINES[engine].files), "pytorch")
        found = {}
        for row in self.table.plans:
            if self.seeds[0] in self.table.found[row, engine]:
                folder = row if row in self.teachers else self.recipe.folder(row, self.seeds[0])
                results = read_json(self.out / "predictions" / f"{folder}-{engine}.json")
                found[row] = (results, load_class_map(self.out / folder))
        split = self.steps.split("val")
        if found and self.recipe.gallery:
            pictures = validation_pictures(split, found, self.recipe.gallery)
            write_images(pictures, class_map_of(split).names, self.out)

    def _rehearsal(self) -> str:
        said = []
        for name, model in self.teachers.items():
            if not from_outside(model):
                said.append(f"{name} with {millions(self.steps.untrained(model))}")
        for variant in self.variants:
            student = self.steps.untrained(variant.student)
            said.append(f"{variant.name} with {millions(student)}")
            if variant.distillation is None:
                check_quantizations(student, variant.quantization)
            else:
                check_fit(student, self._untrained_teacher(variant, student), variant.distillation, variant.quantization)
            for quantization in variant.quantization:
                if quantization.distillation is not None:
                    student, teacher = self.steps.untrained(variant.student), self._low_bit_teacher(variant, quantization)
                    check_fit(student, teacher, quantization.distillation, [])
        return f"the recipe fits: {', '.join(said)}"

    def _untrained_teacher(self, variant: Variant, student: Detector) -> Detector | Teacher:
        model = self.teachers[self.teacher_of[variant.name]]
        if model.checkpoint is not None and from_outside(model):
            return open_teacher(model.checkpoint, student)
        return self.steps.untrained(model)

    def _low_bit_teacher(self, variant: Variant, quantization: Quantization) -> Detector:
        if quantization.teacher is not None:
            return load(quantization.teacher)
        shared = learns_from_shared(quantization, self.recipe)
        return self.steps.untrained(self.teachers[TEACHER] if shared else variant.student)
