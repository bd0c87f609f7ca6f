"""A new detector from a short name: a configuration that is valid for the image size, on any backbone."""

from __future__ import annotations

import copy
import difflib
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForObjectDetection, PreTrainedConfig, PreTrainedModel

from leandetr.detectors.backbones import Backbone, describe_backbone, load_backbone_weights
from leandetr.detectors.detector import Detector
from leandetr.detectors.families import FAMILIES
from leandetr.errors import UserError, unknown
from leandetr.structures import ClassMap, Preprocessing


@dataclass(frozen=True)
class Recipe:
    """How a short name becomes a configuration: the family, its default backbone, how many of its last stages are used, and
    what differs from the family's own defaults."""

    model_type: str
    backbone: str
    stages: int
    description: str
    changes: tuple[tuple[str, Any], ...] = ()


MODELS: dict[str, Recipe] = {
    "detr": Recipe("detr", "resnet50", 1, "DETR (Carion et al., ECCV 2020)"),
    "conditional_detr": Recipe("conditional_detr", "resnet50", 1, "Conditional DETR (Meng et al., ICCV 2021)"),
    "deformable_detr": Recipe("deformable_detr", "resnet50", 3, "Deformable DETR (Zhu et al., ICLR 2021)"),
    "deformable_detr_refine": Recipe(
        "deformable_detr", "resnet50", 3, "Deformable DETR with iterative box refinement", (("with_box_refine", True),)
    ),
    "rt_detr": Recipe("rt_detr", "rt_detr_resnet", 3, "RT-DETR (Zhao et al., CVPR 2024)"),
    "rt_detr_v2": Recipe("rt_detr_v2", "rt_detr_resnet", 3, "RT-DETRv2 (Lv et al., 2024)"),
}

REAL_TIME = ("rt_detr", "rt_detr_v2")
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
        backbone: a timm or transformers backbone; the family's own by default.
        weights: of the backbone, see `load_backbone_weights`; random by default.
        overrides: configuration values by name, dots reach into `backbone_config` ("decoder_layers": 3).

    Raises:
        UserError: an unknown name, backbone or configuration key (with the nearest one), a size the family cannot take (with
        the
            nearest valid one), weights that do not fit.

    Randomness comes from torch's global generator: seed it for the same weights twice.
    """
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    recipe, family = MODELS[name], FAMILIES[MODELS[name].model_type]
    _check_size(name, image_size, family.size_divisor)
    overrides = dict(overrides or {})
    inner = {
        key.removeprefix("backbone_config."): overrides.pop(key)
        for key in list(overrides)
        if key.startswith("backbone_config.")
    }
    # DETR's own lineage always freezes the norms of its backbone; RT-DETR only where they have been trained before.
    frozen_norm = weights is not None or recipe.model_type not in REAL_TIME
    described = describe_backbone(backbone or recipe.backbone, recipe.stages, frozen_norm, inner)
    config = _config(recipe, described, class_map, image_size, overrides, frozen_norm)
    model = _build(config, overrides)
    if weights is not None:
        load_backbone_weights(model.model.backbone.model, described.config, weights)
    else:
        _open_frozen_norms(model.model.backbone)
    # Some families freeze parts of the backbones they know by name, and others by a name that no longer matches. Here the
    # norms alone are frozen (when pretrained); learning rates decide about the rest.
    model.model.backbone.requires_grad_(True)
    return Detector(model, Preprocessing(size=image_size, mean=described.mean, std=described.std), class_map)


def _check_size(name: str, size: tuple[int, int], divisor: int) -> None:
    valid = tuple(max(divisor, round(side / divisor) * divisor) for side in size)
    if valid != tuple(size):
        raise UserError(
            f"image size {size[0]} {size[1]}: {name} needs multiples of {divisor}; "
            f"the nearest valid size is {valid[0]} {valid[1]}"
        )
    if min(size) < 32:
        raise UserError(f"image size {size[0]} {size[1]}: {name} needs at least 32 pixels, the coarsest stride; use 32 32")


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
        values = _real_time(plain, backbone, image_size, frozen_norm) | _widths(overrides, len(backbone.channels)) | values
    try:
        config = type(plain)(**copy.deepcopy(values))
    except Exception as error:  # transformers' strict configurations raise kinds of their own
        raise UserError(f"model: {recipe.model_type} refuses {overrides}: {str(error).splitlines()[-1].strip()}") from error
    if config.d_model % config.decoder_attention_heads:
        raise UserError(
            f"model.d_model: {config.d_model} is not divisible by its {config.decoder_attention_heads} attention heads"
        )
    if recipe.model_type in REAL_TIME and config.num_queries > (cells := _cells(backbone, image_size)):
        raise UserError(
            f"model.num_queries: {config.num_queries} queries cannot be chosen among the {cells} cells of an image of "
            f"{image_size[0]} {image_size[1]}; ask for at most {cells}"
        )
    return config


def _build(config: PreTrainedConfig, overrides: dict[str, Any]) -> PreTrainedModel:
    try:
        return AutoModelForObjectDetection.from_config(config)
    except (ValueError, RuntimeError, ZeroDivisionError, AssertionError) as error:  # widths that do not divide, empty layers
        raise UserError(f"model: no {config.model_type} can be built with {overrides}: {error}; change these values") from error


@torch.no_grad()
def _open_frozen_norms(backbone: nn.Module) -> None:
    """timm starts the last norm of a residual block at zero, to be trained from there: frozen at zero, the block would never
    learn anything."""
    for name, buffer in backbone.named_buffers():
        if name.endswith("weight") and not buffer.any():
            buffer.fill_(1.0)


def _cells(backbone: Backbone, image_size: tuple[int, int]) -> int:
    return sum((image_size[0] // stride) * (image_size[1] // stride) for stride in backbone.strides)


def _real_time(plain: PreTrainedConfig, backbone: Backbone, image_size: tuple[int, int], frozen_norm: bool) -> dict[str, Any]:
    """RT-DETR repeats its backbone's channels and strides, and picks its queries among the cells that the image size gives."""
    return {
        "encoder_in_channels": backbone.channels,
        "feat_strides": backbone.strides,
        "num_queries": min(plain.num_queries, _cells(backbone, image_size)),
        "freeze_backbone_batch_norms": frozen_norm and backbone.config.model_type != "timm_backbone",
    }


def _widths(overrides: dict[str, Any], levels: int) -> dict[str, Any]:
    """One width through encoder and decoder where only one of them was asked for."""
    width = overrides.get("encoder_hidden_dim", overrides.get("d_model"))
    return {} if width is None else {"encoder_hidden_dim": width, "d_model": width, "decoder_in_channels": [width] * levels}
