"""Which operands of attention are rounded to a grid, and to which: those of the products q k^T and p v, p being the softmax.

Each of q, k, v and p gets one grid, where calibration says; that of p has zero point 0, so that padding stays exactly 0. In
schemes without training it is off unless asked for, because it changes little. One thread with AVX-512 VNNI, 40 interleaved
rounds, speed-up over the same static model with float products and its 95 % interval:

| model | ONNX Runtime | OpenVINO |
|---|---|---|
| DETR with a ResNet-50, 480x640, untrained | 1.05 [1.00, 1.07] | 0.97 [0.91, 1.02] |
| RT-DETRv2 with an EfficientNet-lite0, 192x192, trained | 1.02 [0.99, 1.05] | 0.99 [0.96, 1.01] |

The trained one has AP 0.301 with and 0.302 without it, on ONNX Runtime. These products are a hundredth of its multiply-adds.
"""

from __future__ import annotations

from typing import TypeGuard

from torch import nn
from transformers import PreTrainedModel

from leandetr.detectors.attention import open_attention, unopened_attention
from leandetr.quantization.config import OPERANDS, Scheme
from leandetr.quantization.grids import GridSetting

#: operand of attention -> its slot in `AttentionSlots`
SLOT_OF = dict(zip(OPERANDS, ("query", "key", "value", "probabilities"), strict=True))


def operand_settings(model: PreTrainedModel, config: Scheme) -> tuple[dict[nn.Module, GridSetting], dict[str, str], list[str]]:
    """Open the model's attention where a scheme, or one of its overrides, puts operands on grids.

    Returns:
        The slots that get a grid and how it is found; the attentions whose operands stay float although the scheme, or an
        override that matches them, asks for grids, and why; and the names of attentions that overrides can match, none where
        nothing was asked for.
    """
    wanted = [setting for setting in (config, *config.overrides.values()) if _wants(setting)]
    if not wanted:
        return {}, {}, []
    slots: dict[nn.Module, GridSetting] = {}
    left_float: dict[str, str] = {}
    opened = open_attention(model)
    for name in (*opened, *unopened_attention(model)):
        setting, reason = config.setting([name])
        if not _wants(setting):
            if _wants(config):
                left_float[name] = f"operands of attention, {reason}"
        elif name in opened:
            for operand, slot in SLOT_OF.items():
                if (grid := setting.operand(operand)) is not None:
                    slots[getattr(opened[name], slot)] = grid
        else:
            left_float[name] = "operands of attention, which calls no registered function"
    return slots, left_float, list(opened)


def _wants(setting: Scheme | str | None) -> TypeGuard[Scheme]:
    return isinstance(setting, Scheme) and setting.operand(OPERANDS[0]) is not None
