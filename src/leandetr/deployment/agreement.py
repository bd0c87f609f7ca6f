"""How far two engines' answers to the same pixels are the same set of queries, in any order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from torch import Tensor

from leandetr.heads import Head

SURE = 0.3  # the score from which a query is taken for a detection


def agreement(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor], head: Head, tolerance: float) -> tuple[float, float]:
    """How far two answers (logits (B, N, C), boxes (B, N, 4)) are the same set of queries, in any order.

    Returns:
        The share of the queries whose counterpart (one to one, by least largest difference) differs by at most `tolerance` in
        every class probability and box coordinate, in the worst image; and the median of the largest differences there.
    """
    found = []
    for mine, other in zip(_rows(*ours, head), _rows(*theirs, head), strict=True):
        distance = cdist(mine, other, "chebyshev")
        matched = distance[linear_sum_assignment(distance)]
        found.append((float((matched <= tolerance).mean()), float(np.median(matched))))
    return min(found)


@dataclass(frozen=True)
class SureBoxes:
    """Of the boxes with a score of `SURE` or more: how many there are, and how many the other answer has too."""

    count: int
    found: int


def sure_boxes(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor], head: Head, tolerance: float) -> SureBoxes:
    """How many of our sure boxes theirs have, each in a query of its own, whatever its class and score: near-equal scores
    change places where arithmetic is rounded, and the boxes of what is found do not.

    ours, theirs, tolerance: as in `agreement`; of all images together.
    """
    count = found = 0
    scores = head.probabilities(ours[0].float()).amax(-1).cpu().numpy() >= SURE
    for chosen, mine, other in zip(scores, _numbers(ours[1]), _numbers(theirs[1]), strict=True):
        distance = cdist(mine[chosen], other, "chebyshev")
        count += len(distance)
        found += int((distance[linear_sum_assignment(distance)] <= tolerance).sum())
    return SureBoxes(count, found)


def in_words(share: float, sure: SureBoxes, engine: str) -> str:
    """What a comparison of PyTorch with an engine on random images has found; share: of all queries, that agree."""
    queries = f"and of all queries {100 * share:.0f} % agree"
    if not sure.count:
        return (
            f"PyTorch has no box with a score of {SURE} on random images to look for in {engine}'s answer, {queries}, "
            "as happens where scores nearly tie (untrained weights, rounded scores)"
        )
    return f"{engine} finds {sure.found} of the {sure.count} boxes with a score of {SURE} on random images, {queries}"


def _rows(logits: Tensor, boxes: Tensor, head: Head) -> np.ndarray:
    return np.concatenate([_numbers(head.distribution(logits)), _numbers(boxes)], -1)


def _numbers(values: Tensor) -> np.ndarray:
    return np.nan_to_num(values.float().cpu().numpy(), nan=9.0)  # far from any probability and coordinate
