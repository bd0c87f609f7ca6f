"""The distillation methods by name: which terms, with which weights."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from leandetr.detectors.detector import Detector
from leandetr.detectors.teachers import TorchvisionDetector
from leandetr.distillation.assignment import QueryPriorAssignment
from leandetr.distillation.auxiliary_queries import AuxiliaryQueries
from leandetr.distillation.encoder_layers import EncoderLayers
from leandetr.distillation.features import TargetAwareFeatures
from leandetr.distillation.fgd import FocalGlobal
from leandetr.distillation.fgfi import FineGrained
from leandetr.distillation.fitnet import FitNet
from leandetr.distillation.fkd import AttentionGuided
from leandetr.distillation.hard_label import HardLabel
from leandetr.distillation.kd_detr import DistillationPoints
from leandetr.distillation.logits import HungarianLogits
from leandetr.distillation.mgd import MaskedGeneration
from leandetr.distillation.orthogonality import Orthogonality
from leandetr.distillation.predictions import Predictions
from leandetr.distillation.rectification import DistributionRectification
from leandetr.distillation.soft_label import SoftBox, SoftClass
from leandetr.distillation.term import Term
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
        FitNet,
        FocalGlobal,
        MaskedGeneration,
        FineGrained,
        AttentionGuided,
        DistributionRectification,
        AuxiliaryQueries,
        EncoderLayers,
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
    "fitnet": {"fitnet": 1.0},
    "fgd": {"fgd": 1.0},  # the weights of its parts, and those of fkd's, are its own
    "mgd": {"mgd": 2e-5},
    "fgfi": {"fgfi": 0.01},
    "fkd": {"fkd": 1.0},
    "drd": {"drd": 2.5},
    "auxiliary-queries": {"auxiliary-queries": 1.0},
    "encoder-layers": {"encoder-layers": 1.0},
    "aq-detr": {"auxiliary-queries": 1.0, "encoder-layers": 1.0},
}


def chosen_terms(
    methods: Sequence[str], weights: Mapping[str, float] = {}, options: Mapping[str, Mapping[str, Any]] = {}
) -> dict[str, float]:
    """The terms of one or more methods, by name, with their weights; arguments as of `build_terms`.

    Raises UserError for an unknown method, term or option: what can be said without any detector.
    """
    chosen: dict[str, float] = {}
    for method in methods:
        if method not in METHODS:
            raise unknown("distillation method", method, METHODS)
        chosen |= METHODS[method]
    for name in (*weights, *options):
        if name not in chosen:
            raise unknown(f"term of {' + '.join(methods)}", name, chosen)
    for term, values in options.items():
        known = [name for name, kind in inspect.signature(TERMS[term]).parameters.items() if kind.kind is kind.KEYWORD_ONLY]
        for name in values:
            if name not in known:
                raise unknown(f"option of the {term} term", name, known)
    return chosen | weights


def build_terms(
    methods: Sequence[str],
    student: Detector,
    teacher: Detector | TorchvisionDetector | Predictions,
    weights: Mapping[str, float] = {},
    options: Mapping[str, Mapping[str, Any]] = {},
) -> list[tuple[Term, float]]:
    """The terms of one or more methods, with their weights, for a student and a teacher.

    Args:
        methods: names in `METHODS`.
        weights: term -> weight, in place of the method's own.
        options: term -> the term's options, e.g. {"logits": {"stages": "last"}}.

    Raises:
        UserError: an unknown method, term or option, or two detectors that a term cannot bridge.
    """
    chosen = chosen_terms(methods, weights, options)
    for name in () if isinstance(teacher, Detector) else chosen:
        if not TERMS[name].detections_suffice:
            raise UserError(
                f"the {name} term needs the teacher's {', '.join(sorted(TERMS[name].needs))}, and {teacher.source} gives "
                "detections alone; name a saved detector as the teacher, or the method hard-label"
            )
    return [(TERMS[name].build(student, teacher, **options.get(name, {})), weight) for name, weight in chosen.items()]
