"""Decoder layers, queries and image size of a trained detector, measured together and chosen within a budget."""

from leandetr.trimming.goal import TrimGoal
from leandetr.trimming.trim import trim_within

__all__ = ["TrimGoal", "trim_within"]
