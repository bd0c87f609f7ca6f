"""Matching predictions with targets and the set loss, for query groups and distillation terms."""

from leandetr.losses.criterion import SetCriterion, at_every_layer, box_losses, mean_over_ranks
from leandetr.losses.matcher import Assignment, HungarianMatcher, PaddedTargets, assign, box_cost, pad_targets, solve, to_host

__all__ = [
    "Assignment",
    "HungarianMatcher",
    "PaddedTargets",
    "SetCriterion",
    "assign",
    "at_every_layer",
    "box_cost",
    "box_losses",
    "mean_over_ranks",
    "pad_targets",
    "solve",
    "to_host",
]
