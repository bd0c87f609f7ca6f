"""What whole detectors take on an engine, measured in turn."""

from __future__ import annotations

from collections.abc import Mapping

from leandetr.data.coco import Split
from leandetr.deployment.benchmark import Measurement, measure
from leandetr.deployment.budget import whole_latencies
from leandetr.deployment.runtimes import PyTorchRuntime
from leandetr.detectors.detector import Detector

REPEATS = 30


def measured(detectors: Mapping[str, Detector], split: Split, engine: str) -> dict[str, Measurement]:
    """What each takes on the engine, measured in turn; speed-ups are over the first."""
    if engine != "pytorch":
        return whole_latencies(detectors, split, engine)
    found = measure([PyTorchRuntime(each) for each in detectors.values()], split, repeats=REPEATS)
    return dict(zip(detectors, found, strict=True))
