"""The search: every point's AP of one forward a size, its latency of a few measurements, and the chosen one measured itself.

AP is of photographs that the detector was not trained on: on those it has learned by heart, fewer queries do. Learned ones are
put in order on training photographs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.utils.data import Subset

from leandetr.analysis.snapshots import spread
from leandetr.data.batches import Loader
from leandetr.data.coco import CocoDataset, Split
from leandetr.data.transforms import eval_transform
from leandetr.deployment.benchmark import environment
from leandetr.deployment.budget import truth_of
from leandetr.deployment.latency import measured
from leandetr.detectors.detector import Detector
from leandetr.detectors.trim import check_float, in_order, query_count, trim
from leandetr.errors import UserError
from leandetr.progress import counting
from leandetr.trimming.answers import answers, ap_of, order_of_use
from leandetr.trimming.candidates import Grid, grid_of, own_size
from leandetr.trimming.goal import Point, TrimGoal, frontier
from leandetr.trimming.latency import Key, estimated

BATCH = 8  # photographs in a forward
SPEEDUPS = ("speedup", "speedup_low", "speedup_high")


def trim_within(
    detector: Detector, judges: Split, others: Split, goal: TrimGoal, name: str = "the detector"
) -> tuple[Detector, dict[str, Any]]:
    """The trimmed detector, and the frontier that it was chosen on.

    Args:
        detector: float, in evaluation mode.
        judges: photographs with boxes that the detector was not trained on, whose AP is measured.
        others: those that put learned queries in order, by which none are judged.
        name: of the detector, in sentences and in the result.

    Returns:
        The detector; and {"model", "engine", "goal": {"max_ap_drop" or "target_latency_ms"}, "images": photographs that AP was
        measured on, "judged_on": their annotations, "full", "chosen": points, "speedup", "speedup_low", "speedup_high": of the
        chosen one over the full one, measured in turn, "points": all points, "frontier": those that no other surpasses,
        "order": of learned queries or None, "left_out": sentences, "environment"}. A point is {"layers", "queries", "size",
        "ap", "latency_ms", "measured"}.

    Raises:
        UserError: a quantized detector, no photograph with an object among those that judge, a target that cannot be met.
    """
    check_float(detector, name)
    images = spread(len(_dataset(detector, judges)), goal.held_out)
    order = None
    if query_count(detector) and not detector.family.queries_from_encoder:
        dataset = _dataset(detector, others)
        order = order_of_use(detector, Loader(Subset(dataset, spread(len(dataset), goal.held_out)), BATCH))
        detector = in_order(detector, order)
    grid = grid_of(detector)
    points = _judged(estimated(grid, judges, goal.engine), grid, judges, images)
    full = points[grid.layers[0], detector.config.num_queries, own_size(detector)]
    point, trimmed, row = _chosen(detector, points, full, goal, judges)
    found = {
        "model": name,
        "engine": goal.engine,
        "goal": {"max_ap_drop": goal.drop} if goal.target_latency_ms is None else {"target_latency_ms": goal.target_latency_ms},
        "images": len(images),
        "judged_on": str(judges.annotations),
        "full": full.as_dict(),
        "chosen": point.as_dict(),
        **{key: row[key] for key in SPEEDUPS},
        "points": [each.as_dict() for each in points.values()],
        "frontier": [each.as_dict() for each in frontier(list(points.values()))],
        "order": order,
        "left_out": grid.left_out,
        "environment": environment(),
    }
    return trimmed, found


def _dataset(detector: Detector, split: Split) -> CocoDataset:
    return CocoDataset(split, eval_transform(detector.preprocessing), detector.class_map)


def _judged(points: dict[Key, Point], grid: Grid, split: Split, images: list[int]) -> dict[Key, Point]:
    """The points with their AP on these images."""
    judged = {}
    with counting("sizes", len(grid.bases)) as step:
        for size, base in grid.bases.items():
            dataset = _dataset(base, split)
            part = Subset(dataset, images)
            truth = truth_of(dataset, part)
            if not any(not annotation["iscrowd"] for annotation in truth["annotations"]):
                raise UserError(f"{split.annotations}: the {len(images)} images that are to judge hold no object; add more")
            found = answers(base, Loader(part, BATCH), grid.layers, grid.counts_at(size))
            for (layers, count), each in found.items():
                key = layers, count, size
                judged[key] = points[key].judged(ap_of(each, truth, base))
            step()
    return judged


def _chosen(
    detector: Detector, points: dict[Key, Point], full: Point, goal: TrimGoal, split: Split
) -> tuple[Point, Detector, Mapping[str, Any]]:
    """The chosen point, measured in turn with the full detector, unless it is that. What a measurement says in place of an
    estimate may make another point the chosen one, until one is chosen that was measured. The points get what was measured."""
    tried: dict[Key, tuple[Detector, Mapping[str, Any]]] = {full.key: (detector, dict.fromkeys(SPEEDUPS, 1.0))}
    while (point := goal.choose(list(points.values()), full)).key not in tried:
        trimmed = trim(detector, *point.key)
        row = measured({"full": detector, "trimmed": trimmed}, split, goal.engine)["trimmed"]
        assert row["speedup"] is not None  # there is a reference
        points[point.key] = point.timed(full.latency_ms / row["speedup"], True)
        tried[point.key] = trimmed, row
    return point, *tried[point.key]
