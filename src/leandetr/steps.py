"""The steps of a run in its folder: what is done once stays done.

Every step leaves a note under `steps/` with a fingerprint of what it was made from. A step whose note still fits, and whose
product is still there, is not done again: a run that was killed goes on where it was, and a run whose recipe changed redoes
what the change concerns.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from rich.console import Console

from leandetr import verbs
from leandetr.checks import from_outside
from leandetr.data.coco import class_map_of, find_split
from leandetr.data.shapes import write_shapes
from leandetr.deployment.benchmark import environment, measure
from leandetr.deployment.metadata import count_parameters
from leandetr.deployment.runtime import Runtime
from leandetr.detectors.create import create
from leandetr.detectors.detector import Detector
from leandetr.detectors.load import load
from leandetr.errors import UserError
from leandetr.files import claim_folder, read_json, write_json, write_text
from leandetr.recipe import Benchmark, Distillation, Model, Quantization, Recipe, Study
from leandetr.training.classification import WEIGHTS
from leandetr.training.config import Training
from leandetr.training.fit import OutOfTime

TRAINING = "training"  # the kind of step that can stop at any time and go on later


class Made(NamedTuple):
    """What a step made, or what a recipe gave: where it is, and the fingerprint of what it was made from."""

    path: Path
    key: str


class Steps:
    """Does the steps of a recipe in a folder.

    Attributes:
        until: a time of `time.monotonic()`: no step begins that would not be over by then, going by what steps of its kind took
            so far, and a training stops then.
        done: name, kind, seconds and summary of every step that is done, by name, in order.
        data, data_key: the images' folder and its fingerprint, once `prepare` was called.
    """

    data: Path
    data_key: str

    def __init__(self, recipe: Recipe | Study, out: Path) -> None:
        self.recipe, self.out = recipe, out
        self.until = math.inf
        self.done: dict[str, dict[str, Any]] = {}
        self.console = Console(stderr=True, highlight=False)

    def claim(self) -> None:
        """Take the folder and write the recipe into it. Raises UserError where the folder is not ours."""
        claim_folder(self.out, "compress")
        said = self.recipe.model_dump(mode="json", exclude_unset=True)
        write_text(self.out / "recipe.yaml", yaml.safe_dump(said, sort_keys=False))

    def step(self, name: str, made_from: Any, product: Path | None, work: Callable[[], str], kind: str) -> str:
        """Do `work`, which writes `product`, unless that is there and the step's note says that it is of the same input.

        Returns the input's fingerprint. Raises OutOfTime where the step would not be over in time.
        """
        key = fingerprint(made_from)
        note, folder = self.out / "steps" / f"{name}.json", self.out / name
        before = read_json(note) if note.exists() else {}
        same = before.get("made_from") == key
        if same and "summary" in before and (product is None or product.exists()):
            self.done[name] = {field: before[field] for field in ("name", "seconds", "summary")} | {"kind": kind}
            return key
        start = time.monotonic()
        if start + (0 if kind == TRAINING else self.expected(kind)) >= self.until:
            raise OutOfTime(name)
        if not same:
            note.unlink(missing_ok=True)
            if folder.is_dir():
                shutil.rmtree(folder)  # of another recipe; what a kill interrupted is continued instead
        spent = before.get("seconds", 0.0) if same and "summary" not in before else 0.0
        begun = {"name": name, "kind": kind, "made_from": key}
        write_json(note, begun | {"seconds": spent})
        self.console.print(f"[bold]{name}[/bold]")

        def seconds() -> float:
            return round(spent + time.monotonic() - start, 1)

        try:
            summary = work()
        except OutOfTime:
            write_json(note, begun | {"seconds": seconds()})
            raise
        done = {"name": name, "kind": kind, "seconds": seconds(), "summary": summary}
        write_json(note, done | {"made_from": key})
        self.done[name] = done
        return key

    def expected(self, kind: str) -> float:
        """Seconds that the longest finished step of this kind took; 0 where there is none."""
        notes = [read_json(path) for path in (self.out / "steps").glob("*.json")]
        return max((note["seconds"] for note in notes if note.get("kind") == kind and "summary" in note), default=0.0)

    def prepare(self) -> None:
        """Find the data, or write the synthetic one. Raises UserError where a split is missing."""
        data = self.recipe.data
        if data.folder is not None:
            for split in ("train", "val"):
                find_split(data.folder, split)
            self.data, self.data_key = data.folder, str(data.folder.resolve())
            return
        shapes, self.data = data.shapes, self.out / "data"

        def work() -> str:
            write_shapes(self.data, shapes.train, shapes.val, shapes.size, shapes.seed)
            return f"{shapes.train} training and {shapes.val} validation images of synthetic shapes"

        self.data_key = self.step("data", shapes.model_dump(), self.data / "annotations" / "instances_val.json", work, "data")

    def rehearsed(self, work: Callable[[], str]) -> None:
        """Build once what will be trained and quantized, so that what does not fit is said now and not after hours."""
        concerned = self.recipe.model_dump(exclude={"benchmark", "gallery", "calibration", "seeds", "epochs"})
        self.step("rehearsal", [self.data_key, concerned], None, work, "rehearsal")

    def untrained(self, model: Model) -> Detector:
        if model.pretraining is not None and not model.pretraining.folder.is_dir():
            raise UserError(f"pretraining.folder: {model.pretraining.folder} is no folder; name one of images by class")
        if model.checkpoint is not None:
            return load(model.checkpoint)
        classes = class_map_of(find_split(self.data, "train"))
        return create(model.model, classes, self._size(model), model.backbone, model.weights, model.set)

    def pretrained(self, model: Model) -> Model:
        """Pre-train a model's backbone where its recipe says how, once for all models and seeds that say the same.

        Returns the model with the weights that this left.
        """
        if (pretraining := model.pretraining) is None:
            return model
        inside = "backbone_config."
        overrides = {key.removeprefix(inside): value for key, value in model.set.items() if key.startswith(inside)}
        made_from = [pretraining.model_dump(), model.backbone, model.weights, overrides]
        name = f"pretrained-{fingerprint(made_from)[:8]}"
        weights = self.out / name / WEIGHTS

        def work() -> str:
            top1 = verbs.pretrain(
                pretraining.folder,
                model.backbone,
                weights.parent,
                pretraining.image_size,
                model.weights,
                pretraining.bits,
                overrides,
                pretraining.training,
            )
            return f"{model.backbone}, top-1 {top1:.3f}"

        self.step(name, made_from, weights, work, "pretraining")
        return model.model_copy(update={"weights": str(weights)})

    def model(self, name: str, model: Model, seed: int) -> Made:
        """Train a model, or take a finished one."""
        folder = self.out / name

        def work() -> str:
            if model.checkpoint is not None:
                detector = load(model.checkpoint)
                claim_folder(folder, model.checkpoint)
                detector.save(folder)
                return f"taken from {model.checkpoint}, {millions(detector)}"
            detector = verbs.train(self.data, model.model, folder, **self._building(built, seed))
            return f"{_schedule(model)}, {millions(detector)}"

        built = self.pretrained(model)
        made_from = [self.data_key, said(model), self._size(model), seed]
        kind = TRAINING if model.checkpoint is None else "copy"
        return Made(folder, self.step(name, made_from, folder / "config.json", work, kind))

    def teacher(self, name: str, model: Model, seed: int) -> Made:
        """As `model`, but one from outside is taken where it is."""
        if not from_outside(model):
            return self.model(name, model, seed)
        source = Path(model.checkpoint)
        if not source.is_file():
            return Made(source, model.checkpoint)
        with source.open("rb") as detections:
            return Made(source, hashlib.file_digest(detections, "sha256").hexdigest()[:16])

    def distilled(self, name: str, student: Model, seed: int, teacher: Made, distillation: Distillation) -> Made:
        """Train a student that learns from a teacher."""
        folder = self.out / name

        def work() -> str:
            verbs.distill(
                self.data,
                teacher.path,
                student.model,
                folder,
                method=distillation.method,
                term_weights=distillation.weights,
                term_options=distillation.options,
                cache_teacher=distillation.cache,
                **self._building(built, seed),
            )
            return f"{_schedule(student)} with {distillation.method}"

        method = distillation.model_dump(exclude={"cache"})  # where the answers are kept changes none
        built = self.pretrained(student)
        made_from = [self.data_key, teacher.key, said(student), method, self._size(student), seed]
        return Made(folder, self.step(name, made_from, folder / "config.json", work, TRAINING))

    def quantized(self, name: str, detector: Made, quantization: Quantization, seed: int, teacher: Made | None = None) -> Made:
        """Quantize a trained detector, and train it where the quantization says how. A low-bit training that names no teacher
        learns from `teacher`, by default from the detector itself."""
        folder = self.out / name

        def work() -> str:
            options = quantization.options
            calibration = None if "calibration_images" in options else self._calibration()
            plan = None if training is None else low_bit_training(quantization, training, teacher or detector)
            found = verbs.quantize(
                detector.path, self.data, quantization.scheme, folder, calibration, options, plan, self.until
            )
            return found.config.quantization_config.summary().splitlines()[0]

        training = quantization.training and quantization.training.model_copy(update={"seed": seed})
        made_from = [detector.key, quantization.model_dump(), self.recipe.calibration, training and seed]
        made_from += [] if teacher is None else [teacher.key]
        kind = "quantization" if training is None else TRAINING
        return Made(folder, self.step(name, made_from, folder / "config.json", work, kind))

    def exported(self, detector: Made) -> Made:
        """Write a detector's ONNX file."""
        name = detector.path.name
        graph = self.out / "onnx" / f"{name}.onnx"

        def work() -> str:
            verbs.export(detector.path, graph)
            return f"{graph.stat().st_size / 1e6:.2f} MB"

        return Made(graph, self.step(f"onnx-{name}", detector.key, graph, work, "export"))

    def evaluated(self, detector: Made, engine: str, opened: Callable[[], Runtime]) -> dict[str, Any]:
        """COCO's metrics of a detector on an engine, the seconds that took, and the artefact's bytes and parameters; its
        detections go to `predictions/`."""
        label = f"{detector.path.name}-{engine}"
        scores = self.out / "predictions" / f"{label}.metrics.json"

        def work() -> str:
            runtime, start = opened(), time.monotonic()
            metrics, results = verbs.evaluate_runtime(runtime, find_split(self.data, "val"))
            cost = {"evaluate_seconds": round(time.monotonic() - start, 2)}
            cost |= {"size_bytes": runtime.size_bytes, "parameters": runtime.parameters}
            write_json(self.out / "predictions" / f"{label}.json", results)
            write_json(scores, metrics.as_dict() | cost)
            return f"AP {metrics.ap:.3f}"

        self.step(f"evaluate-{label}", [detector.key, engine], scores, work, f"evaluation on {engine}")
        return read_json(scores)

    def measured(
        self, keys: Any, benchmark: Benchmark, opened: Callable[[], list[Runtime]], against: Sequence[int]
    ) -> dict[str, Any]:
        """The environment and the `measurements` of all runtimes in one interleaved run, ratios to those of `against`."""
        file = self.out / "benchmark.json"

        def work() -> str:
            runtimes = opened()
            found = measure(runtimes, find_split(self.data, "val"), benchmark.repeats, against)
            write_json(file, {"environment": environment(), "measurements": found})
            return f"{benchmark.repeats} rounds of {len(runtimes)} candidates"

        self.step("benchmark", [keys, benchmark.model_dump()], file, work, "benchmark")
        return read_json(file)

    def _building(self, model: Model, seed: int) -> dict[str, Any]:
        training = model.training.model_copy(update={"seed": seed})
        shared = {"backbone": model.backbone, "weights": model.weights, "overrides": model.set, "training": training}
        return shared | {"image_size": self._size(model), "until": self.until}

    def _calibration(self) -> int:
        """The recipe's calibration images; of its default only so many as there are."""
        asked = self.recipe.calibration
        if "calibration" in self.recipe.model_fields_set:
            return asked
        return min(asked, len(read_json(find_split(self.data, "train").annotations)["images"]))

    def _size(self, model: Model) -> tuple[int, int]:
        return model.image_size or self.recipe.image_size


def fingerprint(made_from: Any) -> str:
    return hashlib.sha256(json.dumps(made_from, sort_keys=True, default=str).encode()).hexdigest()[:16]


def said(model: Model) -> dict[str, Any]:
    """What a recipe says of a model."""
    return model.model_dump(exclude={"pretraining"} if model.pretraining is None else None)


def low_bit_training(quantization: Quantization, training: Training, teacher: Made) -> verbs.LowBitTraining:
    """How `verbs.quantize` trains; `teacher` is the one of quantizations that name none."""
    distillation, teaching = quantization.distillation, {}
    if distillation is not None:
        teaching = {
            "teacher": quantization.teacher or teacher.path,
            "method": distillation.method,
            "term_weights": distillation.weights,
            "term_options": distillation.options,
        }
    return verbs.LowBitTraining(training, stages=quantization.stages, **teaching)


def millions(detector: Detector) -> str:
    return f"{count_parameters(detector) / 1e6:.2f} M parameters"


def _schedule(model: Model) -> str:
    training = model.training
    return f"{training.epochs} epochs" if training.max_steps is None else f"{training.max_steps} steps"
