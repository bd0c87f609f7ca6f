"""Teaching a small detector with a large one: loss terms between their answers, and the module that trains on them."""

from leandetr.distillation.distiller import Distiller, DistillerOutput
from leandetr.distillation.methods import METHODS, build_terms
from leandetr.distillation.predictions import DetectionTeacher, Predictions
from leandetr.distillation.spec import Distillation, Teaching
from leandetr.distillation.teacher import DetectorTeacher, Teacher
from leandetr.distillation.term import Term

__all__ = [
    "METHODS",
    "DetectionTeacher",
    "DetectorTeacher",
    "Distillation",
    "Distiller",
    "DistillerOutput",
    "Predictions",
    "Teacher",
    "Teaching",
    "Term",
    "build_terms",
]
