"""As few units as reach the goal: how many of the first to leave must have left."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from leandetr.data.coco import Split
from leandetr.deployment.latency import measured
from leandetr.detectors.detector import Detector
from leandetr.errors import OutOfReach, UserError
from leandetr.pruning.config import Pruning

STEPS = 64  # latency is measured of so many numbers of units at most; six of them tell which


def least_for_macs(pruning: Pruning, most: int, macs: Callable[[int], int]) -> int:
    """How many groups must leave at least.

    Args:
        most: that can leave.
        macs: number of groups that have left -> multiply-adds of the whole detector.

    Raises UserError where all do not reach it, or none need leave.
    """
    whole, ratio, target = macs(0), pruning.ratio, pruning.target_macs
    if ratio is not None:
        target = (1 - ratio) * whole
    assert target is not None
    if whole <= target:
        raise UserError(f"target_macs: the detector has {whole:.3g} multiply-adds already; ask for fewer")
    least = macs(most)
    if least > target:
        asked = f"a ratio of {ratio:g}" if ratio is not None else f"a target of {target:g} multiply-adds"
        raise UserError(
            f"{asked} cannot be met: at most {1 - least / whole:.3f} of {whole:.3g} multiply-adds can leave with "
            f"{', '.join(pruning.structures)} before a layer would be empty, and {least:.3g} stay; ask for less"
        )
    return bisect_left(range(most + 1), True, key=lambda count: macs(count) <= target)


def least_for_latency(
    pruning: Pruning, most: int, pruned: Callable[[int], Detector], split: Split
) -> tuple[int, dict[str, Any]]:
    """The same for milliseconds on the engine; and {"engine", "latency_ms": {"before", "after"}, "speedup", "speedup_low",
    "speedup_high"}. The whole detector's latency is that of the first measurement; another's is that over its speed-up, for
    which both were measured in turn, so that a machine whose speed drifts changes no answer."""
    whole, target = pruned(0), pruning.target_latency_ms
    assert target is not None

    @cache
    def rows(count: int) -> Mapping[str, Any]:
        return measured({"whole": whole, "pruned": pruned(count)}, split, pruning.engine)

    def row(count: int) -> dict[str, Any]:
        before = rows(most)["whole"]["latency_ms"]
        ratios = {key: rows(count)["pruned"][key] for key in ("speedup", "speedup_low", "speedup_high")}
        latencies = {"before": before, "after": before / ratios["speedup"]}
        return {"engine": pruning.engine, "latency_ms": latencies, **ratios}

    def takes(count: int) -> float:
        return float(row(count)["latency_ms"]["after"])

    counts = sorted({round(most * step / STEPS) for step in range(STEPS + 1)})
    if takes(most) > target:
        raise OutOfReach(
            f"the target of {target:g} ms cannot be met by pruning {', '.join(pruning.structures)}: without all that can leave "
            f"the detector takes {takes(most):.2f} ms on {pruning.engine}, whole {row(most)['latency_ms']['before']:.2f} ms; "
            "allow more time, trim or quantize too"
        )
    if row(most)["latency_ms"]["before"] <= target:
        raise OutOfReach(f"target_latency_ms: the detector takes no more than {target:g} ms already; ask for less")
    count = counts[bisect_left(counts, True, key=lambda count: count > 0 and takes(count) <= target)]
    return count, row(count)
