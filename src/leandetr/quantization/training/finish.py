"""Low-bit training around the trainable layers: where their grids go, what is logged, and how they become integers.

Every layer rounds its own input, as Q-DETR does, and attention its operands: the sums that shortcuts carry stay float.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedModel, TrainerCallback

from leandetr.detectors.detector import Detector
from leandetr.errors import UserError
from leandetr.quantization.checkpoint import QuantizationRecord, attach, build, weights_left_float
from leandetr.quantization.config import LowBit, Static
from leandetr.quantization.layers.modules import GRID_INPUT, LayerPlan
from leandetr.quantization.layers.trainable import LearnedGrid
from leandetr.quantization.passes.flow import watch
from leandetr.quantization.passes.placement import Placement


def place_trained(
    model: PreTrainedModel, settings: dict[nn.Module, LowBit], run: Callable[[], object]
) -> tuple[Placement, dict[nn.Module, Static]]:
    """Choose the grids of the layers in `settings`. `run` calls the model once.

    Returns the grids, and how each layer's is calibrated.
    """
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    flow = watch({*settings, *convolutions}, run)
    first = next((module for module in flow.sources if isinstance(module, nn.Conv2d)), None)

    placement = Placement(idle={layer for layer in settings if layer not in flow.sources})
    calibration = {}
    for layer, setting in settings.items():
        if layer in placement.idle:
            continue
        weight_bits, bits = setting.layer_bits(layer, layer is first)
        placement.plans[layer] = LayerPlan(weight_bits=weight_bits, input=GRID_INPUT, input_bits=bits)
        calibration[layer] = Static(activation_bits=bits, observer="mse")
    return placement, calibration


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
        trained.finish(stored)
    for weight in weights_left_float(detector.model, record):
        weight.copy_(weight.half())
    attach(detector.model, record)
    return detector


class LogClipped(TrainerCallback):
    """Adds to every log of the loss which share of its values each grid cut off in the step before: `clipped/<layer>/input`,
    `clipped/<layer>/weight`, and `clipped/<attention>/<operand>`."""

    def __init__(self, detector: Detector) -> None:
        self.grids = {}
        for name, module in detector.model.named_modules():
            if isinstance(module, LearnedGrid):
                name = name.removesuffix(".output").replace("weight_grid", "weight").replace(".slots", "")
                self.grids["clipped/" + "/".join(name.rsplit(".", 1))] = module

    def on_step_begin(self, args, state, control, **kwargs):
        last = (state.global_step + 1) % args.logging_steps == 0
        for grid in self.grids.values():
            grid.counting = last

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            found = {name: grid.clipped for name, grid in self.grids.items() if grid.clipped is not None}
            if found:
                shares = torch.stack(list(found.values())).tolist()
                logs |= {name: round(share, 5) for name, share in zip(found, shares, strict=True)}
