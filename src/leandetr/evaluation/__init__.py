"""Accuracy of any callable that predicts, by the field's own evaluation code."""

from leandetr.evaluation.coco import evaluate_results
from leandetr.evaluation.voc import voc_metrics

__all__ = ["evaluate_results", "voc_metrics"]
