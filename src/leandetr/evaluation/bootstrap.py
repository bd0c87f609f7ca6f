"""How sure an AP is: the APs of photographs drawn again and again (the bootstrap, Efron, 1979).

Every draw takes as many photographs as there are, with repetition, the same draws for every detector: the difference of two
detectors on the same draws is paired, and its quantiles are an interval for what other photographs of the kind would show.

What a detection matches depends on its own photograph alone. So everything is matched once, and a photograph that was drawn
n times counts n times.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # of IoU
RECALLS = np.linspace(0.0, 1.0, 101)
MOST = 100  # detections a photograph and class
DRAWS = 200

Array = NDArray[Any]


class _Matched(NamedTuple):
    """The detections of a class, the surest first.

    images: (D,) places of their photographs. right: (T, D) whether each has an object, by IoU threshold. counted: (T, D)
    whether it counts, for what lies on a crowd does not.
    """

    images: Array
    right: Array
    counted: Array


def bootstrap(ground_truth: Mapping[str, Any], results: Iterable[Mapping[str, Any]], draws: int = DRAWS) -> list[float]:
    """COCO's AP on `draws` random draws of the photographs, -1 where a draw has no objects. The draws depend on the number of
    photographs alone.

    Args:
        ground_truth: a COCO dictionary.
        results: detections in COCO's results format.
    """
    images = len(ground_truth["images"])
    counts = np.random.default_rng(0).multinomial(images, [1 / images] * images, size=draws)
    return weighted_ap(ground_truth, results, counts)


def weighted_ap(ground_truth: Mapping[str, Any], results: Iterable[Mapping[str, Any]], counts: Array) -> list[float]:
    """COCO's AP where photograph i, in the order of `ground_truth`, is there counts[r, i] times: (R, I) int -> R numbers."""
    places = {image["id"]: place for place, image in enumerate(ground_truth["images"])}
    objects: dict[Any, dict[int, list[Mapping[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    found: dict[Any, dict[int, list[Mapping[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for entry in ground_truth["annotations"]:
        objects[entry["category_id"]][places[entry["image_id"]]].append(entry)
    for entry in results:
        found[entry["category_id"]][places[entry["image_id"]]].append(entry)
    sums, classes = np.zeros(len(counts)), np.zeros(len(counts))
    for category, own in objects.items():
        plain = [sum(not entry.get("iscrowd", 0) for entry in entries) for entries in own.values()]
        there = counts[:, list(own)] @ np.array(plain)
        precision = _average_precision(_matched(own, found[category]), counts, there)
        sums += np.where(there > 0, precision, 0.0)
        classes += there > 0
    return [float(total / number) if number else -1.0 for total, number in zip(sums, classes, strict=True)]


def interval(draws: Sequence[Sequence[float]], others: Sequence[Sequence[float]]) -> tuple[float, float] | None:
    """The middle 95 % of the difference in AP, the mean over paired trainings (seeds), from what `bootstrap` gave of each. None
    without such trainings, or where a draw has no objects."""
    own, held = np.asarray(draws, dtype=float), np.asarray(others, dtype=float)
    if not own.size or own.shape != held.shape or min(own.min(), held.min()) < 0:
        return None
    low, high = np.quantile((own - held).mean(axis=0), [0.025, 0.975])
    return float(low), float(high)


def _matched(objects: Mapping[int, list[Mapping[str, Any]]], found: Mapping[int, list[Mapping[str, Any]]]) -> _Matched:
    images, scores, right, counted = [], [], [], []
    for place in sorted(found):
        best = sorted(found[place], key=lambda entry: -entry["score"])[:MOST]
        hits, kept = _match(objects.get(place, []), best)
        images.append(np.full(len(best), place))
        scores.append(np.array([entry["score"] for entry in best]))
        right.append(hits)
        counted.append(kept)
    if not images:
        empty = np.zeros((len(THRESHOLDS), 0), dtype=bool)
        return _Matched(np.zeros(0, dtype=np.int64), empty, empty)
    order = np.argsort(-np.concatenate(scores), kind="stable")
    return _Matched(
        np.concatenate(images)[order], np.concatenate(right, axis=1)[:, order], np.concatenate(counted, axis=1)[:, order]
    )


def _match(objects: list[Mapping[str, Any]], found: list[Mapping[str, Any]]) -> tuple[Array, Array]:
    """Of one photograph and class: each detection, the surest first, takes the free object that it covers best, as in COCO;
    crowds are taken by what has no object of its own, any number of times."""
    hits, kept = np.zeros((2, len(THRESHOLDS), len(found)), dtype=bool)
    kept[:] = True
    if not objects:
        return hits, kept
    crowd = np.array([bool(entry.get("iscrowd", 0)) for entry in objects])
    overlaps = _overlaps(found, objects, crowd)
    near = overlaps >= THRESHOLDS[0]
    if not crowd.any() and near.sum(axis=0).max() <= 1 and near.sum(axis=1).max() <= 1:  # nothing to choose
        return overlaps.max(axis=1) >= THRESHOLDS[:, None], kept
    for level, threshold in enumerate(THRESHOLDS):
        free = ~crowd
        for row in np.flatnonzero((overlaps >= threshold).any(axis=1)):
            overlap = overlaps[row]
            reached = np.where(free & (overlap >= threshold), overlap, -1.0)
            # of equal overlaps COCO takes the last
            best = len(reached) - 1 - int(reached[::-1].argmax())
            if reached[best] >= 0:
                hits[level, row], free[best] = True, False
            elif (crowd & (overlap >= threshold)).any():
                kept[level, row] = False
    return hits, kept


def _overlaps(found: list[Mapping[str, Any]], objects: list[Mapping[str, Any]], crowd: Array) -> Array:
    """(D, M) IoU; with a crowd, the part of the detection that lies on it."""
    own, others = (np.array([entry["bbox"] for entry in entries], dtype=float) for entries in (found, objects))
    low = np.maximum(own[:, None, :2], others[:, :2])
    high = np.minimum((own[:, :2] + own[:, 2:])[:, None], others[:, :2] + others[:, 2:])
    shared = np.clip(high - low, 0.0, None).prod(axis=2)
    areas, other_areas = own[:, 2:].prod(axis=1)[:, None], others[:, 2:].prod(axis=1)
    union = np.where(crowd, areas, areas + other_areas - shared)
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def _average_precision(matched: _Matched, counts: Array, there: Array) -> Array:
    """(R,) the class's AP in each draw; `there`: (R,) its objects."""
    weights = counts[:, matched.images].astype(float)  # (R, D)
    total = np.zeros(len(counts))
    if not weights.shape[1]:
        return total
    own = np.maximum(there, 1)[:, None]
    for right, counted in zip(matched.right, matched.counted, strict=True):
        hits = np.cumsum(weights[:, right], axis=1)
        tried = np.cumsum(weights * counted, axis=1)[:, right]
        precision = np.divide(hits, tried, out=np.zeros_like(hits), where=tried > 0)
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        # of the recalls each takes its precision where it is first reached
        reached = np.searchsorted(RECALLS, hits / own, side="right")
        total += (precision * np.diff(reached, axis=1, prepend=0)).sum(axis=1)
    return total / (len(THRESHOLDS) * len(RECALLS))
