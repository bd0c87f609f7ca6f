"""What whole detectors take on an engine, measured in turn."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from leandetr.data.coco import Split
from leandetr.deployment.benchmark import Measurement, measure
from leandetr.deployment.engines import ENGINES
from leandetr.deployment.mobile_export import FORMATS, export_mobile
from leandetr.deployment.onnx import export_onnx
from leandetr.deployment.pytorch import PyTorchRuntime
from leandetr.deployment.runtimes import open_runtime
from leandetr.detectors.detector import Detector

REPEATS = 30


def measured(detectors: Mapping[str, Detector], split: Split, engine: str) -> dict[str, Measurement]:
    """What each takes on the engine, measured in turn; speed-ups are over the first."""
    if engine != "pytorch":
        return whole_latencies(detectors, split, engine)
    found = measure([PyTorchRuntime(each) for each in detectors.values()], split, repeats=REPEATS)
    return dict(zip(detectors, found, strict=True))


def on_cpu(detectors: Mapping[str, Detector]) -> dict[str, Detector]:
    """Copies where the engines run."""
    return {name: copy.deepcopy(detector).cpu() for name, detector in detectors.items()}


def whole_latencies(detectors: Mapping[str, Detector], split: Split, engine: str) -> dict[str, Measurement]:
    """What each detector's exported file takes on the engine, measured in turn; speed-ups are over the first."""
    with TemporaryDirectory() as folder:
        files = [_exported(each, Path(folder) / name, engine) for name, each in on_cpu(detectors).items()]
        measured = measure([open_runtime(file, engine=engine) for file in files], split, repeats=REPEATS)
    return dict(zip(detectors, measured, strict=True))


def _exported(detector: Detector, path: Path, engine: str) -> Path:
    """The file that an engine runs, at `path` with its own suffix."""
    if engine in FORMATS:
        return export_mobile(detector, path.with_name(path.name + ENGINES[engine].files[0]), engine)
    return export_onnx(detector, path.with_name(f"{path.name}.onnx"))
