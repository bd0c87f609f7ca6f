"""A new detector from a short name: a configuration that is valid for the image size, on any backbone."""

from __future__ import annotations

import copy
import difflib
import math
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForObjectDetection, PreTrainedConfig, PreTrainedModel

from leandetr.detectors.backbones import Backbone, describe_backbone, load_backbone_weights
from leandetr.detectors.detector import Detector
from leandetr.detectors.families import FAMILIES
from leandetr.detectors.initialise import initialise
from leandetr.detectors.names import MODELS, Recipe, missing
from leandetr.detectors.transformer_backbones import SWIN_DETR, VITS, describe_own_backbone, window_divisor
from leandetr.errors import UserError, unknown
from leandetr.structures import ClassMap, Preprocessing

REAL_TIME = ("rt_detr", "rt_detr_v2", "d_fine", "deimv2")
HEADS = ("decoder_attention_heads", "decoder_self_attention_heads", "decoder_cross_attention_heads")
COARSEST = 32  # pixels: the stride of the coarsest feature map
GIVEN = ("num_labels", "id2label", "label2id", "backbone_config", "model_type")  # by the data, --backbone and --model


def create(
    name: str,
    class_map: ClassMap,
    image_size: tuple[int, int],
    backbone: str | None = None,
    weights: str | None = None,
    overrides: dict[str, Any] | None = None,
) -> Detector:
    """Build an untrained detector.

    Args:
        name: one of `MODELS`.
        class_map: its classes.
        image_size: fixed (height, width) in pixels.
        backbone: a timm or transformers backbone; the family's own by default. SwinDETR takes the names in `SWINS`; LW-DETR
            and RF-DETR are made for one vision transformer, changed by `overrides` alone.
        weights: of the backbone, see `load_backbone_weights`; random by default.
        overrides: configuration values by name, dots reach into `backbone_config` ("decoder_layers": 3).

    Raises:
        UserError: an unknown name, backbone or configuration key (with the nearest one), a size the family cannot take (with
            the nearest valid one), weights that do not fit, a family that the installed transformers lacks.

    Randomness comes from torch's global generator: seed it for the same weights twice.
    """
    config, described = configure(name, class_map, image_size, backbone, weights, overrides)
    model, family = _build(config, overrides), FAMILIES[config.model_type]
    initialise(model)
    if weights is not None:
        load_backbone_weights(family.backbone(model), described.config, weights)
    else:
        _open_frozen_norms(family.backbone(model))
    # Some families freeze parts of the backbones they know by name, and others by a name that no longer matches. Here the
    # norms alone are frozen (when pretrained); learning rates decide about the rest.
    family.backbone(model).requires_grad_(True)
    return Detector(model, Preprocessing(size=image_size, mean=described.mean, std=described.std), class_map)


def configure(
    name: str,
    class_map: ClassMap,
    image_size: tuple[int, int],
    backbone: str | None = None,
    weights: str | None = None,
    overrides: dict[str, Any] | None = None,
) -> tuple[PreTrainedConfig, Backbone]:
    """What `create` builds, with the same arguments and errors."""
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    recipe = MODELS[name]
    if missing(name):
        raise UserError(f"model {name}: transformers {transformers.__version__} has no such family; install a newer one")
    overrides = dict(overrides or {})
    inner = {
        key.removeprefix("backbone_config."): overrides.pop(key)
        for key in list(overrides)
        if key.startswith("backbone_config.")
    }
    vit = recipe.model_type in VITS
    check_size(name, image_size, size_divisor(recipe.model_type, inner))
    if vit and weights is not None:
        raise UserError(f"weights {weights}: {name} has them in whole checkpoints alone; name one of those as the model")
    # DETR's own lineage always freezes the norms of its backbone; RT-DETR only where they have been trained before.
    frozen_norm = weights is not None or recipe.model_type not in REAL_TIME
    described = (
        describe_own_backbone(recipe.model_type, backbone or recipe.backbone, image_size, inner)
        if vit or recipe.model_type == SWIN_DETR
        else describe_backbone(backbone or recipe.backbone, recipe.stages, frozen_norm, inner)
    )
    return _config(recipe, described, class_map, image_size, overrides, frozen_norm), described


def size_divisor(model_type: str, inner: dict[str, Any]) -> int:
    """What both sides of an image must be multiples of, in pixels; `inner` are changes of the backbone's configuration."""
    return window_divisor(model_type, inner) if model_type in VITS else FAMILIES[model_type].size_divisor


def check_size(name: str, size: tuple[int, int], divisor: int) -> None:
    """Raises UserError for a (height, width) that a model cannot take, with the nearest that it can."""
    least = math.ceil(COARSEST / divisor) * divisor
    valid = tuple(max(least, round(side / divisor) * divisor) for side in size)
    if valid != tuple(size):
        needs = f"multiples of {divisor}" if any(side % divisor for side in size) else f"at least {least} pixels"
        raise UserError(
            f"image size {size[0]} {size[1]}: {name} needs {needs}; the nearest valid size is {valid[0]} {valid[1]}"
        )


def _config(
    recipe: Recipe,
    backbone: Backbone,
    class_map: ClassMap,
    image_size: tuple[int, int],
    overrides: dict[str, Any],
    frozen_norm: bool,
) -> PreTrainedConfig:
    plain = AutoConfig.for_model(recipe.model_type)
    for key in overrides:
        if key in GIVEN:
            raise UserError(f"model.{key}: it follows from the data, the backbone and the model's name; leave it out")
        if not hasattr(plain, key):
            near = difflib.get_close_matches(key, plain.to_dict(), n=1, cutoff=0.4)
            hint = f"; did you mean model.{near[0]}?" if near else ""
            raise UserError(f"model.{key}: {recipe.model_type} has no such configuration key{hint}")
    values = {"num_labels": len(class_map), "backbone_config": backbone.config} | dict(recipe.changes) | overrides
    if recipe.model_type in REAL_TIME:
        values = _real_time(backbone, frozen_norm) | _widths(overrides, len(backbone.channels)) | values
    if recipe.model_type == "adamixer":
        values = {"feature_strides": backbone.strides} | values
    cells = _cells(plain, backbone, image_size, values)
    if cells is not None:
        values = {"num_queries": min(plain.num_queries, cells)} | values
    if values.get("two_stage"):  # where this is what their number is called
        values = values | {"num_queries": overrides.get("two_stage_num_proposals", values["num_queries"])}
        values = values | {"two_stage_num_proposals": values["num_queries"]}
    try:
        config = type(plain)(**copy.deepcopy(values))
    except Exception as error:  # transformers' strict configurations raise kinds of their own
        raise UserError(f"model: {recipe.model_type} refuses {overrides}: {str(error).splitlines()[-1].strip()}") from error
    key = "d_model" if hasattr(config, "d_model") else "hidden_size"
    for kind in HEADS:
        if (width := getattr(config, key)) % getattr(config, kind, 1):
            raise UserError(f"model.{key}: {width} is not divisible by its {getattr(config, kind)} attention heads")
    if getattr(config, "decoder_layers", 1) < 1:
        raise UserError(f"model.decoder_layers: {recipe.model_type} needs at least 1 decoder layer")
    if cells is not None and config.num_queries > cells:
        raise UserError(
            f"model.num_queries: {config.num_queries} queries cannot be chosen among the {cells} cells of an image of "
            f"{image_size[0]} {image_size[1]}; ask for at most {cells}"
        )
    return config


def _build(config: PreTrainedConfig, overrides: dict[str, Any]) -> PreTrainedModel:
    try:
        return AutoModelForObjectDetection.from_config(config)
    except (ValueError, RuntimeError, ZeroDivisionError, AssertionError) as error:  # widths that do not divide, empty layers
        if "tie_weights_keys" in str(error):  # transformers finds no second head to tie to the first
            raise UserError(f"model.decoder_layers: {config.model_type} needs at least 2 decoder layers") from error
        raise UserError(f"model: no {config.model_type} can be built with {overrides}: {error}; change these values") from error


@torch.no_grad()
def _open_frozen_norms(backbone: nn.Module) -> None:
    """timm starts the last norm of a residual block at zero, to be trained from there: frozen at zero, the block would never
    learn anything."""
    for name, buffer in backbone.named_buffers():
        if name.endswith("weight") and not buffer.any():
            buffer.fill_(1.0)


def _cells(plain: PreTrainedConfig, backbone: Backbone, image_size: tuple[int, int], values: dict[str, Any]) -> int | None:
    """How many cells an image has that its queries are chosen among; None where queries are learned."""
    strides = list(backbone.strides)
    if values.get("two_stage"):  # further levels halve the coarsest one
        extra = values.get("num_feature_levels", plain.num_feature_levels) - len(strides)
        strides += [strides[-1] * 2**level for level in range(1, extra + 1)]
    elif plain.model_type == "lw_detr":
        strides = [strides[0] / scale for scale in values["projector_scale_factors"]]
    elif not FAMILIES[plain.model_type].queries_from_encoder:
        return None
    height, width = image_size
    return sum(math.ceil(height / stride) * math.ceil(width / stride) for stride in strides)


def _real_time(backbone: Backbone, frozen_norm: bool) -> dict[str, Any]:
    """RT-DETR and its descendants repeat their backbone's channels and strides."""
    return {
        "encoder_in_channels": backbone.channels,
        "feat_strides": backbone.strides,
        "freeze_backbone_batch_norms": frozen_norm and backbone.config.model_type != "timm_backbone",
    }


def _widths(overrides: dict[str, Any], levels: int) -> dict[str, Any]:
    """One width through encoder and decoder where only one of them was asked for."""
    width = overrides.get("encoder_hidden_dim", overrides.get("d_model"))
    return {} if width is None else {"encoder_hidden_dim": width, "d_model": width, "decoder_in_channels": [width] * levels}
