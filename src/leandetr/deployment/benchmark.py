"""Latency of artefacts on their engines, measured so that a ratio between two of them means something.

A batch of photographs, one unless told otherwise, already decoded and resized, to its detections: copies to the device and
back, inference and post-processing, which all engines need. The candidates take turns, in a new order every round, so that what
else the machine does falls on all of them alike. A ratio is the median over rounds of two latencies of the same round, with a
bootstrap interval.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray

from leandetr.data.batches import collate
from leandetr.data.coco import CocoDataset, Split
from leandetr.deployment.runtime import Runtime
from leandetr.machine import name_of
from leandetr.structures import Batch

PHOTOGRAPHS = 8  # different ones, in turn
WARM_UP = PHOTOGRAPHS  # rounds that are not counted: engines prepare for every new size once
BOOTSTRAP = 2000  # resamples of the rounds
INTERVAL = (2.5, 97.5)  # percentiles
PACKAGES = ("leandetr", "torch", "transformers", "onnxruntime", "openvino", "executorch", "ai-edge-litert")


class Ratio(TypedDict):
    """Part of a `Measurement`."""

    speedup: float | None
    speedup_low: float | None
    speedup_high: float | None


NO_RATIO = Ratio(speedup=None, speedup_low=None, speedup_high=None)


class Measurement(TypedDict):
    """What one artefact costs on one engine.

    device: where the engine computes. batch: photographs in a call. latency_ms, latency_p90_ms: median and 90th percentile of a
    call, in milliseconds. images_per_second: the batch over the median. speedup: the reference's latency
    over this one's, with the ends of its 95 % interval. reference: what the speed-up is against, "float" where that is a float
    artefact, else its name. All four are None without a reference. size_bytes: of the written artefact. parameters: their
    number. theoretical_speedup: over float by the bits of its products alone, not measured; None for float.
    unpacked, unpack_seconds: how many integer weights the engine got as floats, and what that cost when it was loaded.
    """

    artifact: str
    runtime: str
    device: str
    batch: int
    images_per_second: float
    latency_ms: float
    latency_p90_ms: float
    speedup: float | None
    speedup_low: float | None
    speedup_high: float | None
    reference: str | None
    size_bytes: int
    parameters: int
    theoretical_speedup: float | None
    unpacked: int
    unpack_seconds: float


def measure(
    runtimes: Sequence[Runtime],
    split: Split,
    repeats: int = 50,
    against: Sequence[int | None] | None = None,
    seed: int = 0,
    batch: int = 1,
) -> list[Measurement]:
    """Measure all runtimes in one interleaved run.

    Args:
        runtimes: what to measure; runtimes that are one object are measured once each time they are listed.
        split: where the photographs come from.
        repeats: counted rounds; 30 or more where a ratio is to be claimed.
        against: for every runtime the index of the one its speed-up is relative to, None for none; by default the first, for
            those on its engine.
        seed: of the order in the rounds and of the bootstrap.
        batch: photographs in a call.
    """
    against = against or [0 if runtime.name == runtimes[0].name else None for runtime in runtimes]
    batches = [_photographs(runtime, split, batch) for runtime in runtimes]
    rng = np.random.default_rng(seed)
    seconds = np.zeros((repeats, len(runtimes)))
    for turn in range(-WARM_UP, repeats):
        for index in rng.permutation(len(runtimes)):
            photographs = batches[index][turn % len(batches[index])]
            start = time.perf_counter()
            runtimes[index](photographs)
            if turn >= 0:
                seconds[turn, index] = time.perf_counter() - start
    return [
        Measurement(
            artifact=runtime.artifact,
            runtime=runtime.name,
            device=name_of(runtime.device),
            batch=batch,
            images_per_second=float(batch / np.median(taken)),
            latency_ms=float(np.median(taken) * 1e3),
            latency_p90_ms=float(np.percentile(taken, 90) * 1e3),
            **(NO_RATIO if reference is None else _ratio(seconds[:, reference], taken, rng)),
            reference=None if reference is None else _called(runtimes[reference]),
            size_bytes=runtime.size_bytes,
            parameters=runtime.parameters,
            theoretical_speedup=runtime.theoretical_speedup,
            unpacked=runtime.unpacked,
            unpack_seconds=runtime.unpack_seconds,
        )
        for runtime, taken, reference in zip(runtimes, seconds.T, against, strict=True)
    ]


def environment() -> dict[str, Any]:
    """What a latency depends on: processor, cores, threads, versions; and when it was measured."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        **versions,
        "measured": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _photographs(runtime: Runtime, split: Split, batch: int) -> list[Batch]:
    """Batches of photographs, prepared as the runtime wants them; these come again where there are fewer."""
    dataset = CocoDataset(split, runtime.transform, runtime.class_map)
    items = [dataset[index] for index in range(min(max(PHOTOGRAPHS, batch), len(dataset)))]
    return [
        collate([items[place % len(items)] for place in range(start, start + batch)]) for start in range(0, len(items), batch)
    ]


def _called(reference: Runtime) -> str:
    return reference.artifact if reference.metadata.scheme else "float"


def _ratio(reference: NDArray, taken: NDArray, rng: np.random.Generator) -> Ratio:
    ratios = reference / taken
    samples = np.median(rng.choice(ratios, (BOOTSTRAP, len(ratios))), axis=1)
    low, high = np.percentile(samples, INTERVAL)
    return {"speedup": float(np.median(ratios)), "speedup_low": float(low), "speedup_high": float(high)}


def _processor() -> str:
    """The processor's name; Python itself knows only the architecture on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
