"""The rows of `results.json`: what a detector is worth and costs on a runtime, over the seeds that are done.

A mean is over the seeds that are done; the spread beside it is their sample standard deviation, and there is none for a single
seed. A row that has no result yet is there all the same.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NotRequired, TypedDict

from leandetr.evaluation.bootstrap import interval
from leandetr.report.numbers import defined

Accuracy = Literal["ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"]
ACCURACIES: tuple[Accuracy, ...] = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")

Measured = tuple[float | None, float | None]  # mean and spread


class Point(TypedDict):
    """AP after an epoch: mean and spread over the seeds that have come so far."""

    epoch: int
    ap: float
    spread: float | None


class Row(TypedDict):
    """A detector on a runtime.

    name: of the variant, or of its quantization. runtime: `pytorch`, `onnxruntime`, ... seeds: those that are done; planned:
    all that there will be. ap ... ap_large: means, fractions in [0, 1]; evaluate_seconds: of all validation images; None where
    undefined (no such objects); `spread` has the spread of each. against: the row that `change`, the mean difference in AP over
    the seeds that both have, is to; None for what is not compared. change_interval: the middle 95 % of that difference on other
    draws of the photographs (`evaluation.bootstrap.interval`). float_row: the row that it is the quantization of, its own
    name for a float row. size_bytes, parameters: of the artefact. curve: of the trainings. runs: what each seed measured.
    mark: of a search's, "chosen" or "frontier".

    Once the first seed's artefact is measured: artifact: the file or folder. latency_ms, latency_p90_ms: median and 90th
    percentile of one image, in milliseconds. speedup, speedup_low, speedup_high: the float row's latency over this row's on the
    same runtime (1 for a float row), and its interval. theoretical_speedup: by the bits of its products alone, not measured;
    None for float.
    """

    name: str
    runtime: str
    seeds: list[int]
    planned: list[int]
    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    evaluate_seconds: float | None
    spread: dict[str, float | None]
    against: str | None
    float_row: str
    change: float | None
    change_spread: float | None
    change_interval: tuple[float, float] | None
    size_bytes: int | None
    parameters: int | None
    curve: list[Point]
    runs: list[dict[str, Any]]
    mark: NotRequired[str]
    artifact: NotRequired[str]
    latency_ms: NotRequired[float | None]
    latency_p90_ms: NotRequired[float | None]
    speedup: NotRequired[float | None]
    speedup_low: NotRequired[float | None]
    speedup_high: NotRequired[float | None]
    theoretical_speedup: NotRequired[float | None]


def mean_and_spread(values: Sequence[float]) -> Measured:
    """
    >>> mean_and_spread([1.0, 2.0, 3.0]), mean_and_spread([1.0]), mean_and_spread([])
    ((2.0, 1.0), (1.0, None), (None, None))
    """
    return statistics.fmean(values) if values else None, statistics.stdev(values) if len(values) > 1 else None


def combine(
    name: str,
    runtime: str,
    found: Mapping[int, Mapping[str, Any]],
    planned: Sequence[int],
    float_row: str,
    held: tuple[str, Mapping[int, Mapping[str, Any]]] | None = None,
) -> Row:
    """A row out of what its seeds measured.

    Args:
        found: seed -> COCO's metrics (-1 where undefined), `draws` (the APs of `evaluation.bootstrap`), `evaluate_seconds`,
            `size_bytes`, `parameters` and `curve`, a mapping from epochs to AP.
        held: the row to compare with, and what its seeds measured. That of a teacher, which has one seed for all, is compared
            with each.
    """
    found = {seed: found[seed] for seed in planned if seed in found}
    measured = {
        field: mean_and_spread([run[field] for run in found.values() if defined(run[field])])
        for field in (*ACCURACIES, "evaluate_seconds")
    }
    against, others = held or (None, {})
    both = [seed for seed in found if seed in others]
    pairs = [(found[seed]["ap"], others[seed]["ap"]) for seed in both]
    change, change_spread = mean_and_spread([ap - other for ap, other in pairs if defined(ap) and defined(other)])
    last = next(reversed(found.values()), {})
    return Row(
        name=name,
        runtime=runtime,
        seeds=list(found),
        planned=list(planned),
        ap=measured["ap"][0],
        ap50=measured["ap50"][0],
        ap75=measured["ap75"][0],
        ap_small=measured["ap_small"][0],
        ap_medium=measured["ap_medium"][0],
        ap_large=measured["ap_large"][0],
        evaluate_seconds=measured["evaluate_seconds"][0],
        spread={field: spread for field, (_, spread) in measured.items()},
        against=against,
        float_row=float_row,
        change=change,
        change_spread=change_spread,
        change_interval=interval([found[seed]["draws"] for seed in both], [others[seed]["draws"] for seed in both]),
        size_bytes=last.get("size_bytes"),
        parameters=last.get("parameters"),
        curve=_curve([run["curve"] for run in found.values()]),
        runs=[{"seed": seed, **{key: value for key, value in run.items() if key != "draws"}} for seed, run in found.items()],
    )


def _curve(runs: Sequence[Mapping[int, float]]) -> list[Point]:
    points = []
    for epoch in sorted({epoch for run in runs for epoch in run}):
        found = [run[epoch] for run in runs if epoch in run]
        points.append(Point(epoch=epoch, ap=statistics.fmean(found), spread=mean_and_spread(found)[1]))
    return points


def row_of(name: str | None, runtime: str, rows: Sequence[Row]) -> Row | None:
    """The row of that name on that runtime, None where there is none."""
    return next((row for row in rows if row["name"] == name and row["runtime"] == runtime), None)


def quantized(row: Row) -> bool:
    """Whether a row is made of another one that is float."""
    return row["float_row"] != row["name"]


def surely_slower(row: Mapping[str, Any]) -> bool:
    """Whether the speed-up, where it was measured, is below 1 with its whole interval, where it has one."""
    highest = row.get("speedup_high")
    highest = highest if defined(highest) else row.get("speedup")
    return defined(highest) and highest < 1
