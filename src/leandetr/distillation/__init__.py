"""Teaching a small detector with a large one: loss terms between their answers, and the module that trains on them."""

from leandetr.distillation.distiller import Distiller, DistillerOutput
from leandetr.distillation.methods import METHODS, build_terms
from leandetr.distillation.predictions import Predictions
from leandetr.distillation.term import Term

__all__ = ["METHODS", "Distiller", "DistillerOutput", "Predictions", "Term", "build_terms"]
