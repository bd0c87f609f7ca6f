"""The end of low-bit training: a detector whose layers hold the integers that they have trained for."""

from __future__ import annotations

import copy

import torch

from leandetr.detectors.detector import Detector
from leandetr.errors import UserError
from leandetr.quantization.checkpoint import QuantizationRecord, attach, build, weights_left_float
from leandetr.quantization.layers.modules import GriddedActivation, QuantizedLayer
from leandetr.quantization.layers.trainable import TrainableActivation, TrainableLayer


def in_training(detector: Detector) -> bool:
    """Whether a detector's layers hold float weights that are rounded as they run."""
    record = getattr(detector.config, "quantization_config", None)
    return isinstance(record, QuantizationRecord) and record.trainable


@torch.no_grad()
def finish(detector: Detector) -> Detector:
    """A copy of a detector in low-bit training, whose layers hold integers, packed at their width. It answers the same but for
    the layers that stayed float, whose weights are rounded to the 16 bits that they are saved in: with few bits everywhere else
    they would be a quarter of the file.

    Raises UserError where the detector is not in low-bit training.
    """
    if not in_training(detector):
        raise UserError("the model is not in low-bit training; quantize it with the scheme low-bit first")
    detector = copy.deepcopy(detector).eval()
    record = copy.deepcopy(detector.config.quantization_config)
    record.trainable = False
    for trained, stored in build(detector.model, record).items():
        match trained, stored:
            case TrainableLayer(), QuantizedLayer():
                trained.finish(stored)
            case TrainableActivation(), GriddedActivation():
                trained.finish(stored)
    for weight in weights_left_float(detector.model, record):
        weight.copy_(weight.half())
    attach(detector.model, record)
    return detector
