"""`prune`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from leandetr.data.coco import class_map_of
from leandetr.detectors.build import build
from leandetr.detectors.checkpoints.load import load
from leandetr.detectors.detector import Detector
from leandetr.detectors.spec import NewDetector
from leandetr.files import claiming, write_json
from leandetr.machine import chosen_device
from leandetr.pruning import Pruning, prune_units
from leandetr.verbs.data import Data, opened, split_of


def prune(model: str | Path | NewDetector, data: Data, out: Path, pruning: Pruning) -> tuple[Detector, dict[str, Any]]:
    """Leave the least important hidden units, attention heads and inner channels of a saved detector out as far as a goal says,
    without training, and save what stays in `out`; `pruning.json` there says what of each layer. `distill` with the whole
    detector as teacher recovers it.

    model: a saved detector; or one that is to be trained further on the data, which is first made what it will be then.
    data: `train` is looked at alone. Returns the detector and what is in the JSON. Raises UserError for every fault of the
    input.
    """
    data = opened(data)
    with claiming(out, ["prune", model, data, pruning.model_dump()]):
        split = split_of(data, "train")
        if isinstance(model, NewDetector):
            whole, name = build(model, class_map_of(split)), str(model.checkpoint)
        else:
            whole, name = load(model), str(model)
        detector, found = prune_units(whole.to(chosen_device()), split, pruning, name)
        write_json(Path(out) / "pruning.json", found)
        detector.save(Path(out))
        return detector, found
