"""Backbones that belong to one family: Swin for SwinDETR, windowed vision transformers for LW-DETR and RF-DETR."""

from __future__ import annotations

import math
from typing import Any

from transformers import AutoConfig, SwinConfig

from leandetr.detectors.backbones import Backbone, refuse_unknown
from leandetr.detectors.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from leandetr.detectors.swin_detr import SWINS, SwinDetrConfig
from leandetr.errors import UserError, unknown

SWIN_DETR = SwinDetrConfig.model_type
#: model type of a family -> the vision transformer it is made for, and the values of it that LW-DETR-small and RF-DETR-base
#: have. Without a mask token: only pretraining by masked images would teach it.
VITS: dict[str, tuple[str, dict[str, Any]]] = {
    "lw_detr": (
        "lw_detr_vit",
        {
            "hidden_size": 192,
            "num_hidden_layers": 10,
            "window_block_indices": [0, 1, 3, 6, 7, 9],
            "out_indices": [2, 4, 5, 9],
        },
    ),
    "rf_detr": (
        "rf_detr_dinov2",
        {"hidden_size": 384, "num_attention_heads": 6, "out_indices": [2, 5, 8, 11], "use_mask_token": False},
    ),
}
#: keys of the side, in pixels, of the images that position embeddings are made for
SIDES = {"lw_detr": ("image_size", "pretrain_image_size"), "rf_detr": ("image_size",)}


def describe_own_backbone(model_type: str, name: str, image_size: tuple[int, int], overrides: dict[str, Any]) -> Backbone:
    """The backbone of SwinDETR, LW-DETR or RF-DETR; `overrides` changes its configuration.

    A vision transformer has one width and one stride at every depth. Its position embeddings are made for a square of the
    image's longer side, so that square images need no resampling.

    Raises UserError for a backbone that the family cannot take, an unknown key, and values that do not fit each other.
    """
    if model_type in VITS:
        kind, values = VITS[model_type]
        if name != kind:
            raise UserError(f"backbone {name}: {model_type} is made for its own, {kind}; leave the backbone out")
        values = values | dict.fromkeys(SIDES[model_type], max(image_size))
    else:
        if name not in SWINS:
            raise unknown("Swin", name, SWINS)
        kind, values = "swin", SWINS[name]
    refuse_unknown(overrides, AutoConfig.for_model(kind))
    try:
        config = AutoConfig.for_model(kind, **values | overrides)
    except Exception as error:  # transformers' strict configurations raise kinds of their own
        fault = str(error).splitlines()[-1].strip()
        raise UserError(f"model.backbone_config: {kind} refuses {overrides}: {fault}; change these values") from error
    if isinstance(config, SwinConfig):
        growth = [2**stage for stage in range(len(config.depths))]
        channels, strides = [config.embed_dim * times for times in growth], [config.patch_size * times for times in growth]
    else:
        channels, strides = [config.hidden_size], [config.patch_size]
    return Backbone(config, channels, strides, IMAGENET_MEAN, IMAGENET_STD)


def window_divisor(model_type: str, overrides: dict[str, Any]) -> int:
    """What both sides of an image must be multiples of, in pixels: one patch in each of a vision transformer's windows. LW-DETR
    counts all windows of an image, RF-DETR those along a side."""
    plain = AutoConfig.for_model(VITS[model_type][0])
    windows = overrides.get("num_windows", plain.num_windows)
    along = math.isqrt(windows) if model_type == "lw_detr" else windows
    return overrides.get("patch_size", plain.patch_size) * along
