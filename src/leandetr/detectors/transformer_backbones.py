"""Backbones that belong to one family: Swin for SwinDETR, windowed vision transformers for LW-DETR and RF-DETR."""

from __future__ import annotations

import math
from typing import Any

from transformers import AutoConfig, SwinConfig

from leandetr.detectors.backbones import Backbone
from leandetr.detectors.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from leandetr.detectors.swin_detr import SWINS, SwinDetrConfig
from leandetr.errors import UserError, unknown

#: model type of a family -> that of the vision transformer it is made for, which has one width and one stride at every depth
VITS = {"lw_detr": "lw_detr_vit", "rf_detr": "rf_detr_dinov2"}
#: what transformers builds for these families where no backbone is named: LW-DETR-small's and RF-DETR-base's
PUBLISHED = {
    "lw_detr": {
        "hidden_size": 192,
        "num_hidden_layers": 10,
        "window_block_indices": [0, 1, 3, 6, 7, 9],
        "out_indices": [2, 4, 5, 9],
    },
    "rf_detr": {"hidden_size": 384, "num_attention_heads": 6, "out_features": ["stage2", "stage5", "stage8", "stage11"]},
}
OWN = (SwinDetrConfig.model_type, *VITS)


def describe_own_backbone(model_type: str, name: str, image_size: tuple[int, int], overrides: dict[str, Any]) -> Backbone:
    """The backbone of a family in `OWN`; `overrides` changes its configuration. The position embeddings of a vision transformer
    get the image's longer side, so that they are not resampled.

    Raises UserError for a backbone that the family cannot take and for values that do not fit each other.
    """
    if model_type in VITS:
        if name != VITS[model_type]:
            raise UserError(f"backbone {name}: {model_type} is made for its own, {VITS[model_type]}; leave the backbone out")
        build, values = _vit(model_type, image_size), PUBLISHED[model_type] | overrides
    elif name not in SWINS:
        raise unknown("Swin", name, SWINS)
    else:
        build, values = SwinConfig, SWINS[name] | overrides
    return build, values


