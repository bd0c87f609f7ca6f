"""`trim`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from leandetr.analysis.frontier import draw
from leandetr.detectors.checkpoints.load import load
from leandetr.detectors.detector import Detector
from leandetr.files import claiming, write_json
from leandetr.machine import chosen_device
from leandetr.trimming import TrimGoal, trim_within
from leandetr.verbs.data import Data, opened, split_of


def trim(model: str | Path, data: Data, out: Path, goal: TrimGoal | None = None) -> tuple[Detector, dict[str, Any]]:
    """Cut a saved detector to fewer decoder layers, queries and pixels as far as a goal allows, without training, and save it
    in `out`; `frontier.json` and `frontier.png` there say what else was measured.

    goal: by default the fastest that loses at most 0.005 AP on ONNX Runtime.
    data: photographs of `val` judge, those of `train` put learned queries in order.

    Returns the detector and what is in the JSON. Raises UserError for every fault of the
    input.
    """
    data, goal = opened(data), goal or TrimGoal()
    with claiming(out, ["trim", model, data, goal.model_dump()]):
        judges, others = split_of(data, "val"), split_of(data, "train")
        detector, found = trim_within(load(model).to(chosen_device()), judges, others, goal, str(model))
        draw(found, Path(out) / "frontier.png")
        write_json(Path(out) / "frontier.json", found)
        detector.save(Path(out))
        return detector, found
