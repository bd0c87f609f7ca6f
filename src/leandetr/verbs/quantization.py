"""`quantize`, and quantizing within a budget."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from leandetr.deployment.budget import Budget
from leandetr.deployment.budget import quantize_within as budgeted
from leandetr.detectors.checkpoints.load import load
from leandetr.detectors.detector import Detector
from leandetr.detectors.image_size import explained
from leandetr.errors import UserError
from leandetr.files import claiming, write_json
from leandetr.machine import chosen_device
from leandetr.quantization.config import LowBit, Scheme, Static, scheme_config
from leandetr.verbs.calibration import asking, calibrated, reconstructed
from leandetr.verbs.data import Data, opened, split_of, state_of
from leandetr.verbs.low_bit import LowBitTraining, train_low_bit


def quantize(
    model: str | Path,
    data: Data,
    scheme: str | Scheme,
    out: Path,
    calibration: int | None = None,
    low_bit: LowBitTraining | None = None,
    until: float = math.inf,
) -> Detector:
    """Quantize a saved detector with a scheme and save the result in `out`.

    Args:
        scheme: a name stands for the scheme with its default options.
        calibration: images of `train` for schemes that need them; by default the scheme's own number, or all where there are
            fewer.
        low_bit: how the scheme low-bit is trained; without it calibration and `reconstructed` choose what is saved.
        until: as in `train`, for that training.

    Raises UserError for every fault of the input.
    """
    config, data = scheme if isinstance(scheme, Scheme) else scheme_config(scheme), opened(data)
    if calibration is not None:
        config = asking(config, calibration, data)
    if low_bit is not None and not isinstance(config, LowBit):
        raise UserError(f"the scheme {config.name} is not trained; leave out teacher and schedule, or choose low-bit")
    trained = [] if low_bit is None else [low_bit.said()]
    # only a training is gone on with; without one all is done anew
    state = state_of(data, model=model, teacher=low_bit.teacher, stage_one=low_bit.stage_one) if low_bit else None
    with claiming(out, ["quantize", model, data, config.to_dict(), *trained], state):
        if isinstance(config, LowBit) and low_bit is not None and state is not None:
            return train_low_bit(load(model), data, config, Path(out), low_bit, until, state)
        detector = load(model)
        with explained(detector, detector.preprocessing.size, str(model)):
            if isinstance(config, LowBit):
                quantized = reconstructed(detector, data, config)
            else:
                quantized = calibrated(detector, data, config)
        quantized.save(Path(out))
        return quantized


def quantize_within(
    model: str | Path, data: Data, scheme: Static, out: Path, budget: Budget, calibration: int | None = None
) -> tuple[Detector, dict[str, Any]]:
    """Quantize a saved detector on a scheme's calibrated grids, layer by layer as far as a budget allows, and save it in `out`;
    what the search found is in `search.json`.

    calibration: as in `quantize`. Returns the detector and what is in the JSON.
    """
    data = opened(data)
    if calibration is not None:
        scheme = asking(scheme, calibration, data)
    with claiming(out, ["quantize", model, data, scheme.to_dict(), asdict(budget)]):
        detector, found = budgeted(load(model).to(chosen_device()), scheme, split_of(data, "train"), budget)
        detector.save(Path(out))
        write_json(Path(out) / "search.json", found)
        return detector, found
