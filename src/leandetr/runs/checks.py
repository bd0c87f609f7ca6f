"""What can be said against a recipe before anything is trained: of its names without any detector, of its detectors by building
each once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from leandetr.data.transforms import AUGMENTATIONS
from leandetr.deployment.engines import CPU_ENGINES
from leandetr.deployment.mobile_export import FORMATS
from leandetr.detectors.detector import Detector
from leandetr.detectors.names import MODELS
from leandetr.distillation.distiller import Distiller
from leandetr.distillation.methods import build_terms, chosen_terms
from leandetr.distillation.spec import Distillation
from leandetr.distillation.teacher import Teacher
from leandetr.errors import unknown
from leandetr.quantization.config import scheme_config
from leandetr.recipe import Benchmark, Model, Quantization, Variant


def check_names(models: Iterable[Model], variants: Iterable[Variant], benchmark: Benchmark | None) -> None:
    """Raises UserError for an unknown model, augmentation, method, term, scheme, engine, or option of one."""
    for model in models:
        if model.checkpoint is None and model.model not in MODELS:
            raise unknown("model", model.model, MODELS)
        if model.training.augment not in ("auto", *AUGMENTATIONS):
            raise unknown("augmentation", model.training.augment, ("auto", *AUGMENTATIONS))
    for variant in variants:
        parts: list[Variant | Quantization] = [variant, *variant.quantization]
        for part in parts:
            if part.distillation is not None:
                chosen_terms(part.distillation)
        for quantization in variant.quantization:
            scheme_config(quantization.scheme, **quantization.options)
    engines = [name for name in CPU_ENGINES if name not in FORMATS]  # those run float detectors alone
    for engine in benchmark.runtimes if benchmark else ():
        if engine not in engines:
            raise unknown("engine", engine, engines)


def check_fit(
    student: Detector, teacher: Detector | Teacher, distillation: Distillation, quantizations: Sequence[Quantization]
) -> None:
    """Raises UserError where a student cannot learn from a teacher by a method, where the teacher's answers cannot be kept, or
    where a student has no layer that an override names."""
    distiller = Distiller(student, teacher, build_terms(distillation, student, teacher))
    if distillation.cache is not None:
        distiller.check_cached()
    check_quantizations(student, quantizations)


def check_quantizations(student: Detector, quantizations: Sequence[Quantization]) -> None:
    """Raises UserError where a pattern of a quantization matches no layer of the student."""
    layers = [name for name, _ in student.model.named_modules(remove_duplicate=False)]
    for quantization in quantizations:
        scheme_config(quantization.scheme, **quantization.options).check_overrides(layers)
