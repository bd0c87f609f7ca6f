"""What every layer gets under a scheme: its setting, or the reason why it stays float or holds more bits than asked for."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from leandetr.detectors.detector import Detector
from leandetr.quantization.config import LowBit, Scheme, SmoothQuant, WeightOnly
from leandetr.quantization.grids import GridSetting
from leandetr.quantization.layers.groups import group_size_of
from leandetr.quantization.layers.modules import is_quantizable, names_of
from leandetr.quantization.layers.trainable import TrainableLayer
from leandetr.quantization.passes.operands import operand_settings


@dataclass
class Decision:
    """settings: layer -> the scheme that it is quantized by. smoothed: those of its Linear layers that are smoothed before.
    operands: operand of attention -> the setting of its grid. left_float: name of a layer with weights, or of an attention,
    that stays float -> why. kept_wide: name of a layer with more bits than were asked for -> why.

    What an earlier stage of a low-bit training has quantized is in none."""

    settings: dict[nn.Linear | nn.Conv2d, Scheme] = field(default_factory=dict)
    smoothed: dict[nn.Linear, SmoothQuant] = field(default_factory=dict)
    operands: dict[nn.Module, GridSetting] = field(default_factory=dict)
    left_float: dict[str, str] = field(default_factory=dict)
    kept_wide: dict[str, str] = field(default_factory=dict)


def decide(detector: Detector, config: Scheme) -> Decision:
    """Attention is opened where operands get grids. Raises UserError for an override that matches nothing."""
    operands, attention_left_float, layer_names = operand_settings(detector.model, config)
    decision = Decision(operands=operands)
    later = isinstance(config, LowBit) and config.part == "backbone"
    backbone = set(detector.family.backbone(detector.model).modules()) if later else set()
    for module, names in names_of(detector.model).items():
        if isinstance(module, TrainableLayer):
            layer_names += names
        elif is_quantizable(module):
            layer_names += names
            setting, reason = config.setting(names)
            if setting is None:
                decision.left_float[names[0]] = reason
            elif later and module not in backbone:
                decision.left_float[names[0]] = "left to the second stage"
            else:
                decision.settings[module] = setting
            if isinstance(setting, WeightOnly) and (wide := _why_wide(module, setting, config, reason)):
                decision.kept_wide[names[0]] = wide
        elif any(parameter.ndim > 1 for parameter in module.parameters(recurse=False)):
            decision.left_float[names[0]] = f"{type(module).__name__}, neither a plain Linear nor a plain Conv2d"
    config.check_overrides(layer_names)
    for layer, setting in decision.settings.items():
        if isinstance(setting, SmoothQuant):
            decision.settings[layer] = setting.after()
            if isinstance(layer, nn.Linear):
                decision.smoothed[layer] = setting
    decision.left_float |= attention_left_float
    return decision


def _why_wide(layer: nn.Linear | nn.Conv2d, setting: WeightOnly, config: Scheme, reason: str) -> str | None:
    if not reason.startswith("override") and setting != config:
        return reason
    if setting.bits < 8 and group_size_of(layer, setting.group_size) is None:
        return f"{layer.weight.shape[1]} inputs have no group of 16 or more"
    return None
