"""A study: many variants of a student, several seeds, one table that grows.

The first seed of every variant comes before the second of any, so that the table says something early. It is written again
after every step, and everything in it comes from the steps' notes and products: a study that was stopped, by its budget or by a
kill, goes on where it was.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from leandetr.checks import check_benchmark, check_distillation, check_fit, check_model, check_quantizations, from_outside
from leandetr.data.coco import class_map_of, find_split
from leandetr.deployment.benchmark import environment
from leandetr.deployment.runtime import Runtime
from leandetr.deployment.runtimes import open_runtime
from leandetr.detectors.detector import Detector
from leandetr.detectors.load import load
from leandetr.detectors.teachers import TorchvisionDetector
from leandetr.distillation.predictions import Predictions
from leandetr.errors import UserError
from leandetr.files import write_json
from leandetr.quantization.config import scheme_config
from leandetr.recipe import Benchmark, Model, Quantization, Study, Variant
from leandetr.report.study import LATENCY, combine, study_table, write_study
from leandetr.steps import Made, Steps, millions
from leandetr.training.callbacks import ap_by_epoch
from leandetr.training.fit import OutOfTime
from leandetr.training.trainer import Diverged
from leandetr.verbs import open_teacher


class StudyRun:
    """One run of a study in a folder.

    A trained variant is in `NAME-seed-N`, a quantized one in `NAME-SCHEME-seed-N`, the shared teacher in `teacher`, one that
    variants name for themselves in `teacher-NAME` of the first that does.

    Raises UserError for an unknown model, augmentation, distillation method, scheme or engine, and for an option that is none.
    """

    def __init__(self, study: Study, out: Path, command: str) -> None:
        self.study, self.out, self.command = study, out, command
        self.steps = Steps(study, out)
        self.engines = study.benchmark.runtimes if study.benchmark else ["pytorch"]
        self.teachers, self.teacher_of = teachers_of(study)
        self.rows = planned_rows(study, self.teachers)
        self.found: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}  # row, engine -> seed -> metrics
        self.first: dict[tuple[str, str], Made] = {}  # row, engine -> the first seed's artefact
        self.failed: dict[str, Diverged] = {}
        self.measured: dict[str, Any] | None = None
        for model in (*self.teachers.values(), *(variant.student for variant in study.variants)):
            check_model(model)
        for variant in study.variants:
            for part in (variant, *variant.quantization):
                if part.distillation is not None:
                    check_distillation(part.distillation)
            for quantization in variant.quantization:
                scheme_config(quantization.scheme, **quantization.options)
        if study.benchmark is not None:
            check_benchmark(study.benchmark)

    def run(self, until: float = math.inf) -> dict[str, Any]:
        """Do what there is time for until `until` of `time.monotonic()`, and return what `results.json` holds; its `left` says
        what remains to be done, "" where nothing does. Raises UserError in the end where a training has diverged; the same
        call tries it again."""
        self.steps.claim()
        self.steps.prepare()
        self.steps.rehearsed(self._rehearsal)
        self.steps.until = -math.inf
        self._work()  # finds what earlier calls have finished, so that the table has it from the start
        self.steps.until = until
        self._work()
        results = self._written()
        if self.failed:
            raise UserError(f"{self._failures()}; the other rows are in {self.out / 'report.md'}")
        return results

    def _work(self) -> None:
        """Go through all steps in order, past those that there is no time for."""
        study, teachers = self.study, {}
        for name, model in self.teachers.items():
            with self._attempt(name):
                teachers[name] = self.steps.teacher(name, model, study.seeds[0])
                if not from_outside(model):
                    self._evaluate(name, teachers[name], study.seeds[0])
        for seed in study.seeds:
            for variant in study.variants:
                if variant.distillation is None or self.teacher_of[variant.name] in teachers:
                    with self._attempt(f"{variant.name}-seed-{seed}"):
                        self._variant(variant, seed, teachers)
        if study.benchmark is not None and not self._missing():
            with self._attempt("benchmark"):
                self._measure(study.benchmark)

    @contextmanager
    def _attempt(self, name: str) -> Iterator[None]:
        """Leave out what there is no time for; note a training that diverges, and go on with the next."""
        try:
            yield
        except OutOfTime:
            return
        except Diverged as error:
            self.failed[name] = error
            self.steps.console.print(f"{name}: {error}", markup=False, soft_wrap=True)

    def _failures(self) -> str:
        return "; ".join(f"{name}: {error}" for name, error in self.failed.items())

    def _variant(self, variant: Variant, seed: int, teachers: Mapping[str, Made]) -> None:
        """Train a variant with one seed, quantize it, evaluate what came of it."""
        name = f"{variant.name}-seed-{seed}"
        if variant.distillation is None:
            trained = self.steps.model(name, variant.student, seed)
        else:
            teacher = teachers[self.teacher_of[variant.name]]
            trained = self.steps.distilled(name, variant.student, seed, teacher, variant.distillation)
        self._evaluate(variant.name, trained, seed)
        for row, quantization in variant.quantized().items():
            shared = learns_from_shared(quantization, self.study)
            if not shared or "teacher" in teachers:
                name = f"{row}-seed-{seed}"
                with self._attempt(name):
                    teacher = teachers["teacher"] if shared else None
                    self._evaluate(row, self.steps.quantized(name, trained, quantization, seed, teacher), seed)

    def _evaluate(self, row: str, detector: Made, seed: int) -> None:
        """The accuracy of a detector on every engine, into the table."""
        threads = self.study.benchmark.threads if self.study.benchmark else None
        for engine in self.engines:
            artefact = detector if engine == "pytorch" else self.steps.exported(detector)
            opened = functools.partial(open_runtime, artefact.path, threads, engine)
            metrics = self.steps.evaluated(detector, engine, opened)
            new = seed not in self.found.setdefault((row, engine), {})
            self.found[row, engine][seed] = metrics | {"curve": ap_by_epoch(detector.path / "training")}
            if seed == self.study.seeds[0]:
                self.first[row, engine] = artefact
            if new and self.steps.until > 0:  # not one by one those that were there before
                self.steps.console.print(study_table(self._written()))

    def _measure(self, benchmark: Benchmark) -> None:
        """The latency of the first seed's artefacts; a quantized one against its float row."""
        pairs = [(row, engine) for engine in self.engines for row in self.rows]
        against = [pairs.index((self.rows[row].float_row, engine)) for row, engine in pairs]
        keys = {" on ".join(pair): self.first[pair].key for pair in pairs}

        def opened() -> list[Runtime]:
            return [open_runtime(self.first[row, engine].path, benchmark.threads, engine) for row, engine in pairs]

        self.measured = self.steps.measured(keys, benchmark, opened, against)

    def _missing(self) -> list[str]:
        """What has no result yet, in the order in which it will be done."""
        return [
            row if plan.seeds != self.study.seeds else f"{row} with seed {seed}"
            for seed in self.study.seeds
            for row, plan in self.rows.items()
            if seed in plan.seeds and any(seed not in self.found.get((row, engine), {}) for engine in self.engines)
        ]

    def _left(self) -> str:
        missing, planned = self._missing(), sum(len(plan.seeds) for plan in self.rows.values())
        if not missing and (self.study.benchmark is None or self.measured is not None):
            return ""
        if not missing:
            return "The benchmark is left; the same command does it."
        left = f"{len(missing)} of {planned} results are left, the next is {missing[0]}; the same command goes on."
        return f"{left} Failed: {self._failures()}." if self.failed else left

    def _written(self) -> dict[str, Any]:
        """Write the table as far as it goes."""
        measured = self.measured or {"environment": environment(), "measurements": []}
        rows = []
        for engine in self.engines:
            for name, plan in self.rows.items():
                against = None if plan.against is None else self.found.get((plan.against, engine), {})
                row = combine(name, engine, self.found.get((name, engine), {}), plan.seeds, plan.against, against)
                rows.append(row)
        for row, latency in zip(rows, measured["measurements"]):  # both by engine, then by row
            row |= {field: latency[field] for field in LATENCY}
        results = {
            "environment": measured["environment"],
            "command": self.command,
            "recipe": (self.out / "recipe.yaml").read_text(encoding="utf-8"),
            "steps": list(self.steps.done.values()),
            "seeds": self.study.seeds,
            "epochs": self.study.epochs,
            "left": self._left(),
            "rows": rows,
        }
        write_json(self.out / "results.json", results)
        write_study(results, self.out)
        return results

    def _rehearsal(self) -> str:
        said = []
        for name, model in self.teachers.items():
            if not from_outside(model):
                said.append(f"{name} with {millions(self.steps.untrained(model))}")
        for variant in self.study.variants:
            student = self.steps.untrained(variant.student)
            said.append(f"{variant.name} with {millions(student)}")
            if variant.distillation is None:
                check_quantizations(student, variant.quantization)
            else:
                check_fit(student, self._untrained_teacher(variant), variant.distillation, variant.quantization)
            for quantization in variant.quantization:
                if quantization.distillation is not None:
                    student, teacher = self.steps.untrained(variant.student), self._low_bit_teacher(variant, quantization)
                    check_fit(student, teacher, quantization.distillation, [])
        return f"the study fits: {', '.join(said)}"

    def _untrained_teacher(self, variant: Variant) -> Detector | TorchvisionDetector | Predictions:
        model = self.teachers[self.teacher_of[variant.name]]
        if from_outside(model):
            return open_teacher(model.checkpoint, class_map_of(find_split(self.steps.data, "train")))
        return self.steps.untrained(model)

    def _low_bit_teacher(self, variant: Variant, quantization: Quantization) -> Detector:
        if quantization.teacher is not None:
            return load(quantization.teacher)
        shared = learns_from_shared(quantization, self.study)
        return self.steps.untrained(self.teachers["teacher"] if shared else variant.student)


class Plan(NamedTuple):
    """A row: the seeds that it has, the row that its accuracy is held against (None: those held against themselves, and
    teachers), and the row that its latency is."""

    seeds: list[int]
    against: str | None
    float_row: str


def planned_rows(study: Study, teachers: Mapping[str, Model]) -> dict[str, Plan]:
    """The table's rows by name: teachers, then the variants, each followed by its quantized ones."""
    rows = {name: Plan(study.seeds[:1], None, name) for name, model in teachers.items() if not from_outside(model)}
    reference = study.variants[0].name
    for variant in study.variants:
        held = variant.against or reference
        rows[variant.name] = Plan(study.seeds, held if held != variant.name else None, variant.name)
        rows |= {row: Plan(study.seeds, variant.name, variant.name) for row in variant.quantized()}
    return rows


def teachers_of(study: Study) -> tuple[dict[str, Model], dict[str, str]]:
    """The teachers by name, equal ones once, and the name of each distilled variant's teacher."""
    teachers: dict[str, Model] = {}
    of_variant: dict[str, str] = {}
    for variant in study.variants:
        if variant.distillation is not None:
            equal = (name for name, model in teachers.items() if model == variant.teacher)
            name = next(equal, "teacher" if variant.teacher == study.teacher else f"teacher-{variant.name}")
            teachers[name], of_variant[variant.name] = variant.teacher, name
    if any(learns_from_shared(quantization, study) for variant in study.variants for quantization in variant.quantization):
        teachers["teacher"] = study.teacher
    return teachers, of_variant


def learns_from_shared(quantization: Quantization, study: Study) -> bool:
    """Whether a low-bit training has the study's teacher."""
    return quantization.distillation is not None and quantization.teacher is None and study.teacher is not None
