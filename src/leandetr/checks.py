"""What can be said against a recipe before anything is trained: of its names without any detector, of its detectors by building
each once."""

from __future__ import annotations

from collections.abc import Sequence

from leandetr.data.transforms import AUGMENTATIONS
from leandetr.deployment.runtimes import ENGINES
from leandetr.detectors.create import MODELS
from leandetr.detectors.detector import Detector
from leandetr.detectors.teachers import TorchvisionDetector, names_torchvision
from leandetr.distillation.distiller import Distiller
from leandetr.distillation.methods import build_terms, chosen_terms
from leandetr.distillation.predictions import Predictions
from leandetr.errors import unknown
from leandetr.quantization.config import scheme_config
from leandetr.recipe import Benchmark, Distillation, Model, Quantization


def from_outside(model: Model) -> bool:
    """Whether a teacher is a JSON of detections or one of torchvision's detectors: such cannot be a row of a table."""
    return str(model.checkpoint).endswith(".json") or names_torchvision(str(model.checkpoint))


def check_model(model: Model) -> None:
    """Raises UserError for a name of a model or augmentation that is none."""
    if model.checkpoint is None and model.model not in MODELS:
        raise unknown("model", model.model, MODELS)
    if model.training.augment not in ("auto", *AUGMENTATIONS):
        raise unknown("augmentation", model.training.augment, ("auto", *AUGMENTATIONS))


def check_distillation(distillation: Distillation) -> None:
    """Raises UserError for an unknown method, term or option."""
    chosen_terms(distillation.method.split(","), distillation.weights, distillation.options)


def check_benchmark(benchmark: Benchmark) -> None:
    """Raises UserError for an unknown engine."""
    for engine in benchmark.runtimes:
        if engine not in ENGINES:
            raise unknown("engine", engine, ENGINES)


def check_fit(
    student: Detector,
    teacher: Detector | TorchvisionDetector | Predictions,
    distillation: Distillation,
    quantizations: Sequence[Quantization],
) -> None:
    """Raises UserError where a student cannot learn from a teacher by a method, or has no layer that an override names."""
    methods = distillation.method.split(",")
    Distiller(student, teacher, build_terms(methods, student, teacher, distillation.weights, distillation.options))
    check_quantizations(student, quantizations)


def check_quantizations(student: Detector, quantizations: Sequence[Quantization]) -> None:
    """Raises UserError where a pattern of a quantization matches no layer of the student."""
    layers = [name for name, _ in student.model.named_modules(remove_duplicate=False)]
    for quantization in quantizations:
        scheme_config(quantization.scheme, **quantization.options).check_overrides(layers)
