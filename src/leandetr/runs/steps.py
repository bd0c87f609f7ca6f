"""The steps of a run: data, models, quantizations, exports, evaluations, the benchmark, each noted in the ledger."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from leandetr import verbs
from leandetr.data.annotations import Split, read_annotations
from leandetr.data.coco import class_map_of
from leandetr.data.partition import Partition
from leandetr.data.shapes import write_shapes
from leandetr.data.splits import DataFolder
from leandetr.deployment.benchmark import environment, measure
from leandetr.deployment.metadata import count_parameters
from leandetr.deployment.runtime import Runtime
from leandetr.detectors.build import build
from leandetr.detectors.checkpoints.load import load
from leandetr.detectors.detector import Detector
from leandetr.detectors.spec import NewBackbone
from leandetr.distillation.spec import Distillation, Teaching
from leandetr.errors import UserError
from leandetr.evaluation.bootstrap import bootstrap
from leandetr.files import claim_folder, read_json, write_json, write_text
from leandetr.inputs import State, file_digest, weights_state
from leandetr.locks import alone_in
from leandetr.quantization.config import scheme_config
from leandetr.recipe import Benchmark, Common, Model, Quantization
from leandetr.recipe.rows import from_outside
from leandetr.report.numbers import accuracy
from leandetr.runs.ledger import TRAINING, Ledger, Made, fingerprint, inherited
from leandetr.training.classification import WEIGHTS
from leandetr.training.config import Training
from leandetr.trimming.goal import TrimGoal


class Steps:
    """Does the steps of a recipe in a folder.

    Attributes:
        ledger: what is done.
        data, data_key, data_state: the images, their fingerprint and the state of their files, once `prepare` was called.
            All steps have the same object, and with it the same splits.
    """

    data: verbs.Data
    data_key: str
    data_state: State

    def __init__(self, recipe: Common, out: Path) -> None:
        self.recipe, self.out = recipe, out
        self.ledger = Ledger(out)
        self._weights_state = functools.cache(weights_state)  # once a run, as the data's: many models start from one file

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Take the folder for the block, with the recipe written into it. Raises UserError where the folder is not ours, or
        another command works there."""
        claim_folder(self.out, "compress")
        with alone_in(self.out):
            said = self.recipe.model_dump(mode="json", exclude_unset=True)
            write_text(self.out / "recipe.yaml", yaml.safe_dump(said, sort_keys=False))
            yield

    def prepare(self) -> None:
        """Find the data, or write the synthetic one. Raises UserError where a split is missing."""
        data = self.recipe.data
        if data.folder is not None:
            self.data, self.data_key = DataFolder(data.folder), str(data.folder.resolve())
            if data.val_fraction is not None:
                draw = (data.val_fraction, data.val_seed or 0, data.val_group)
                self.data, self.data_key = Partition(data.folder, *draw), f"{self.data_key} {draw}"
            self.data_state = verbs.state_of(self.data)
            return
        shapes, folder = data.shapes, self.out / "data"
        assert shapes is not None  # a recipe's data have one of the two

        def work() -> str:
            write_shapes(folder, shapes.train, shapes.val, shapes.size, shapes.seed)
            return f"{shapes.train} training and {shapes.val} validation images of synthetic shapes"

        self.data, last = DataFolder(folder), folder / "annotations" / "instances_val.json"
        self.data_key = self.ledger.step("data", shapes.model_dump(), {}, last, work, "data").key
        self.data_state = verbs.state_of(self.data) if last.exists() else {}

    def split(self, name: str) -> Split:
        return verbs.split_of(self.data, name)

    def rehearsed(self, work: Callable[[], str]) -> None:
        """Build once what will be trained and quantized, so that what does not fit is said now and not after hours."""
        concerned = self.recipe.model_dump(exclude={"benchmark", "gallery", "calibration", "seed", "seeds", "epochs"})
        self.ledger.step("rehearsal", [self.data_key, concerned], self.data_state, None, work, "rehearsal")

    def untrained(self, model: Model) -> Detector:
        if model.pretraining is not None and not model.pretraining.folder.is_dir():
            raise UserError(f"pretraining.folder: {model.pretraining.folder} is no folder; name one of images by class")
        if not model.is_trained:
            return load(str(model.checkpoint))
        return build(self._sized(model), class_map_of(self.split("train")))

    def pretrained(self, model: Model) -> Model:
        """Pre-train a model's backbone where its recipe says how, once for all models and seeds that say the same.

        Returns the model with the weights that this left.
        """
        if (pretraining := model.pretraining) is None:
            return model
        inside = "backbone_config."
        values = {key.removeprefix(inside): value for key, value in model.set.items() if key.startswith(inside)}
        size, schedule = pretraining.image_size, pretraining.training
        backbone = NewBackbone(name=model.backbone, image_size=size, weights=model.weights, set=values)
        made_from = [pretraining.model_dump(), model.backbone, model.weights, values]
        name = f"pretrained-{fingerprint(made_from)[:8]}"
        weights = self.out / name / WEIGHTS

        def work() -> str:
            top1 = verbs.pretrain(pretraining.folder, backbone, weights.parent, pretraining.bits, schedule)
            return f"{model.backbone}, top-1 {top1:.3f}"

        state = verbs.state_of(pretraining.folder, weights=model.weights)
        self.ledger.step(name, made_from, state, weights, work, "pretraining")
        return model.model_copy(update={"weights": str(weights)})

    def prepared(self, model: Model) -> Model:
        """As a training takes it: with the recipe's image size where it has none, after what its recipe does before."""
        return self._pruned(self._sized(self.pretrained(model)))

    def _pruned(self, model: Model) -> Model:
        """Prune a checkpoint where its recipe says how, once for all models and seeds that say the same.

        Returns the model with what that left as its checkpoint.
        """
        if (pruning := model.prune) is None:
            return model
        whole = model.model_dump(include={"checkpoint", "set", "queries", "image_size"})
        made_from = [self.data_key, whole, pruning.model_dump(exclude={"rounds"})]  # which `rounds_of` has made one
        folder = self.out / f"pruned-{fingerprint(made_from)[:8]}"

        def work() -> str:
            _, found = verbs.prune(model, self.data, folder, pruning)
            gone = {what: 1 - found[what]["after"] / found[what]["before"] for what in ("parameters", "multiply_adds")}
            return f"{gone['multiply_adds']:.1%} of multiply-adds and {gone['parameters']:.1%} of parameters left out"

        state = self.data_state | self._read_by(model)
        self._detector(folder.name, made_from, state, work, "pruning")
        return model.model_copy(update={"checkpoint": folder, "set": {}, "queries": None})

    def model(self, name: str, model: Model, seed: int) -> Made:
        """Train a model, or take a finished one."""
        folder = self.out / name

        def work() -> str:
            if not model.is_trained:
                detector = load(str(model.checkpoint))
                claim_folder(folder, model.checkpoint)
                detector.save(folder)
                return f"taken from {model.checkpoint}, {millions(detector)}"
            detector = verbs.train(self.data, built, folder, _with_seed(model.training, seed), self.ledger.until)
            return f"{_schedule(model)}, {millions(detector)}"

        built = self.prepared(model)
        made_from = [self.data_key, said(model), self._size(model), seed]
        kind = TRAINING if model.is_trained else "copy"
        state = self.data_state if model.is_trained else {}
        return self._detector(name, made_from, state | self._read_by(built), work, kind)

    def teacher(self, name: str, model: Model, seed: int) -> Made:
        """As `model`, but one from outside is taken where it is."""
        if model.checkpoint is None or not from_outside(model):
            return self.model(name, model, seed)
        source = Path(model.checkpoint)
        if not source.is_file():
            return Made(source, str(model.checkpoint), "")
        return Made(source, file_digest(source), "")

    def distilled(self, name: str, student: Model, seed: int, teacher: Made, distillation: Distillation) -> Made:
        """Train a student that learns from a teacher."""
        folder = self.out / name

        def work() -> str:
            teaching = Teaching(teacher=teacher.path, **dict(distillation))
            verbs.distill(self.data, teaching, built, folder, _with_seed(student.training, seed), self.ledger.until)
            return f"{_schedule(student)} with {distillation.method}"

        method = distillation.model_dump(exclude={"cache"})  # where the answers are kept changes none
        built = self.prepared(student)
        made_from = [self.data_key, teacher.key, said(student), method, self._size(student), seed]
        state = self.data_state | self._read_by(built) | inherited(teacher=teacher)
        return self._detector(name, made_from, state, work, TRAINING)

    def quantized(self, name: str, detector: Made, quantization: Quantization, seed: int, teacher: Made | None = None) -> Made:
        """Quantize a trained detector, and train it where the quantization says how. A low-bit training that names no teacher
        learns from `teacher`, by default from the detector itself."""
        folder = self.out / name

        def work() -> str:
            scheme = scheme_config(quantization.scheme, **quantization.options)
            calibration = None if "calibration_images" in quantization.options else self._calibration()
            plan = None if training is None else low_bit_training(quantization, training, teacher or detector)
            found = verbs.quantize(detector.path, self.data, scheme, folder, calibration, plan, self.ledger.until)
            return found.config.quantization_config.summary().splitlines()[0]

        training = quantization.training and _with_seed(quantization.training, seed)
        made_from = [detector.key, quantization.model_dump(), self.recipe.calibration, training and seed]
        made_from += [] if teacher is None else [teacher.key]
        kind = "quantization" if training is None else TRAINING
        state = self.data_state | inherited(detector=detector, teacher=teacher) | weights_state("teacher", quantization.teacher)
        return self._detector(name, made_from, state, work, kind)

    def trimmed(self, name: str, detector: Made, goal: TrimGoal) -> Made:
        """Cut a trained detector to fewer layers, queries and pixels."""
        folder = self.out / name

        def work() -> str:
            _, found = verbs.trim(detector.path, self.data, folder, goal)
            chosen, full = found["chosen"], found["full"]
            layers, queries = (f"{chosen[part]} of {full[part]} {part}" for part in ("layers", "queries"))
            return f"{layers}, {queries}, {found['speedup']:.2f} times as fast on {goal.engine}"

        state = self.data_state | inherited(detector=detector)
        return self._detector(name, [detector.key, goal.model_dump()], state, work, "trimming")

    def exported(self, detector: Made) -> Made:
        """Write a detector's ONNX file."""
        name = detector.path.name
        graph = self.out / "onnx" / f"{name}.onnx"

        def work() -> str:
            verbs.export(detector.path, graph)
            return f"{graph.stat().st_size / 1e6:.2f} MB"

        return self.ledger.step(f"onnx-{name}", detector.key, inherited(detector=detector), graph, work, "export")

    def evaluated(self, detector: Made, engine: str, opened: Callable[[], Runtime], part: str = "val") -> dict[str, Any] | None:
        """COCO's metrics of a detector on an engine and a part of the data, its APs on drawn photographs (`bootstrap`), the
        seconds that its answers took, and the artefact's bytes and parameters; its detections go to `predictions/`. None in a
        rehearsal, where it was not done before."""
        label = f"{detector.path.name}-{engine}" + ("" if part == "val" else f"-{part}")
        scores = self.out / "predictions" / f"{label}.metrics.json"

        def work() -> str:
            split, runtime, start = self.split(part), opened(), time.monotonic()
            metrics, results = verbs.evaluate_runtime(runtime, split)
            cost = {"evaluate_seconds": round(time.monotonic() - start, 2)}
            cost |= {"size_bytes": runtime.size_bytes, "parameters": runtime.parameters}
            write_json(self.out / "predictions" / f"{label}.json", results)
            draws = bootstrap(read_annotations(split.annotations).ground_truth(), results)
            write_json(scores, metrics.as_dict() | cost | {"draws": [round(ap, 5) for ap in draws]})
            return f"AP {accuracy(metrics.ap)}"

        name, state = f"evaluate-{label}", self.data_state | inherited(detector=detector)
        self.ledger.step(name, [detector.key, engine], state, scores, work, f"evaluation on {engine}")
        return read_json(scores) if self.ledger.steps[name].done else None

    def measured(
        self, artefacts: Mapping[str, Made], benchmark: Benchmark, opened: Callable[[], list[Runtime]], against: Sequence[int]
    ) -> dict[str, Any] | None:
        """The environment and the `measurements` of all runtimes in one interleaved run, ratios to those of `against`; None in
        a rehearsal, where it was not done before."""
        file = self.out / "benchmark.json"

        def work() -> str:
            runtimes = opened()
            found = measure(runtimes, self.split("val"), benchmark.repeats, against)
            write_json(file, {"environment": environment(), "measurements": found})
            return f"{benchmark.repeats} rounds of {len(runtimes)} candidates"

        keys = {name: artefact.key for name, artefact in artefacts.items()}
        self.ledger.step("benchmark", [keys, benchmark.model_dump()], inherited(**artefacts), file, work, "benchmark")
        return read_json(file) if self.ledger.steps["benchmark"].done else None

    def _detector(self, name: str, made_from: Any, state: State, work: Callable[[], str], kind: str) -> Made:
        folder = self.out / name
        return self.ledger.step(name, made_from, state, folder / "config.json", work, kind)._replace(path=folder)

    def _sized(self, model: Model) -> Model:
        """A model that is trained with the recipe's image size where it has none."""
        return model.model_copy(update={"image_size": self._size(model)}) if model.is_trained else model

    def _read_by(self, model: Model) -> State:
        """The state of the files that a model starts from."""
        return self._weights_state("checkpoint", model.checkpoint) | self._weights_state("weights", model.weights)

    def _calibration(self) -> int:
        """The recipe's calibration images; of its default only so many as there are."""
        asked = self.recipe.calibration
        if "calibration" in self.recipe.model_fields_set:
            return asked
        return min(asked, len(read_json(self.split("train").annotations)["images"]))

    def _size(self, model: Model) -> tuple[int, int] | int | None:
        return model.image_size or self.recipe.image_size


def said(model: Model) -> dict[str, Any]:
    """What a recipe says of a model."""
    values = model.model_dump(exclude={"prune": {"rounds"}} | ({"pretraining": True} if model.pretraining is None else {}))
    return values | ({"trained": "further"} if model.checkpoint is not None and model.is_trained else {})


def low_bit_training(quantization: Quantization, training: Training, teacher: Made) -> verbs.LowBitTraining:
    """How `verbs.quantize` trains; `teacher` is the one of quantizations that name none."""
    teaching = None
    if quantization.distillation is not None:
        teaching = Teaching(teacher=quantization.teacher or teacher.path, **dict(quantization.distillation))
    return verbs.LowBitTraining(training=training, teaching=teaching, stages=quantization.stages)


def millions(detector: Detector) -> str:
    """A detector's parameters in words."""
    return f"{count_parameters(detector) / 1e6:.2f} M parameters"


def _with_seed(training: Training, seed: int) -> Training:
    return training.model_copy(update={"seed": seed})


def _schedule(model: Model) -> str:
    training = model.training
    length = f"{training.epochs} epochs" if training.max_steps is None else f"{training.max_steps} steps"
    return length if model.checkpoint is None else f"{length} from {model.checkpoint}"
