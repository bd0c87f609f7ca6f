"""A new detector from a short name: a configuration that is valid for the image size, on any backbone."""

from __future__ import annotations

import copy
import difflib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForObjectDetection, PreTrainedConfig, PreTrainedModel

from leandetr.detectors.architecture import class_to_load
from leandetr.detectors.backbones import Backbone, load_backbone_weights
from leandetr.detectors.detector import Detector
from leandetr.detectors.families.registry import FAMILIES, family_of
from leandetr.detectors.names import MODELS, Model, missing
from leandetr.detectors.preprocessing import resized_to
from leandetr.errors import UserError, unknown
from leandetr.structures import ClassMap, Preprocessing

ATTENTION_HEADS = ("decoder_attention_heads", "decoder_self_attention_heads", "decoder_cross_attention_heads")
COARSEST = 32  # pixels: the stride of the coarsest feature map
GIVEN = ("num_labels", "id2label", "label2id", "backbone_config", "model_type")  # by the data, --backbone and --model


def create(
    name: str,
    class_map: ClassMap,
    image_size: tuple[int, int] | int,
    backbone: str | None = None,
    weights: str | None = None,
    overrides: dict[str, Any] | None = None,
) -> Detector:
    """Build an untrained detector.

    Args:
        name: one of `MODELS`.
        class_map: its classes.
        image_size: fixed (height, width) in pixels; or the shorter side, see `resized_to`, in families that take any size.
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
    model, family = build_model(config, overrides or {}), family_of(config)
    family.initialise(model)
    if weights is not None:
        load_backbone_weights(family.backbone(model), described.config, weights)
    else:
        _open_frozen_norms(family.backbone(model))
    # Some families freeze parts of the backbones they know by name, and others by a name that no longer matches. Here the
    # norms alone are frozen (when pretrained); learning rates decide about the rest.
    family.backbone(model).requires_grad_(True)
    prepared = Preprocessing(**resized_to(image_size), mean=described.mean, std=described.std)
    return Detector(model, prepared, class_map)


def configure(
    name: str,
    class_map: ClassMap,
    image_size: tuple[int, int] | int,
    backbone: str | None = None,
    weights: str | None = None,
    overrides: dict[str, Any] | None = None,
) -> tuple[PreTrainedConfig, Backbone]:
    """What `create` builds, with the same arguments and errors."""
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    model, family = MODELS[name], FAMILIES[MODELS[name].model_type]
    if missing(name):
        raise UserError(f"model {name}: transformers {transformers.__version__} has no such family; install a newer one")
    overrides = dict(overrides or {})
    inner = {
        key.removeprefix("backbone_config."): overrides.pop(key)
        for key in list(overrides)
        if key.startswith("backbone_config.")
    }
    image_size = check_size(name, image_size, family.divisor(inner))
    if family.one_backbone and backbone not in (None, model.backbone):
        raise UserError(f"backbone {backbone}: {name} is made for its own, {model.backbone}; leave the backbone out")
    frozen_norm = weights is not None or family.frozen_norm
    described = family.describe_backbone(backbone or model.backbone, image_size, frozen_norm, inner)
    return _config(model, described, class_map, image_size, overrides, frozen_norm), described


def check_size(name: str, size: tuple[int, int] | int, divisor: int) -> tuple[int, int]:
    """A (height, width) that images have, or for a shorter side the least that they have.

    Raises UserError for one that a model cannot take, with the nearest that it can.
    """
    if isinstance(size, int):
        if divisor > 1:
            raise UserError(
                f"image size {size}: {name} takes images of one size, whose sides are multiples of {divisor}; name height and "
                "width"
            )
        size = size, size
    least = math.ceil(COARSEST / divisor) * divisor
    valid = tuple(max(least, round(side / divisor) * divisor) for side in size)
    if valid != tuple(size):
        needs = f"multiples of {divisor}" if any(side % divisor for side in size) else f"at least {least} pixels"
        raise UserError(
            f"image size {size[0]} {size[1]}: {name} needs {needs}; the nearest valid size is {valid[0]} {valid[1]}"
        )
    return size


def _config(
    model: Model,
    backbone: Backbone,
    class_map: ClassMap,
    image_size: tuple[int, int],
    overrides: dict[str, Any],
    frozen_norm: bool,
) -> PreTrainedConfig:
    family, plain = FAMILIES[model.model_type], AutoConfig.for_model(model.model_type)
    check_keys(overrides, plain)
    asked = {"num_labels": len(class_map), "backbone_config": backbone.config, **model.changes, **overrides}
    values = family.follows(backbone, frozen_norm, overrides) | asked
    strides = family.proposal_strides(plain, backbone, values)
    cells = None if strides is None else sum(math.prod(math.ceil(side / stride) for side in image_size) for stride in strides)
    if cells is not None:
        values = {"num_queries": min(plain.num_queries, cells)} | values
    values = family.counted(values, overrides)
    with accepting(model.model_type, overrides):
        config = type(plain)(**copy.deepcopy(values))
    key = "d_model" if hasattr(config, "d_model") else "hidden_size"
    for kind in ATTENTION_HEADS:
        if (width := getattr(config, key)) % getattr(config, kind, 1):
            raise UserError(f"model.{key}: {width} is not divisible by its {getattr(config, kind)} attention heads")
    if getattr(config, "decoder_layers", 1) < 1:
        raise UserError(f"model.decoder_layers: {model.model_type} needs at least 1 decoder layer")
    if cells is not None and config.num_queries > cells:
        raise UserError(
            f"model.num_queries: {config.num_queries} queries cannot be chosen among the {cells} cells of an image of "
            f"{image_size[0]} {image_size[1]}; ask for at most {cells}"
        )
    return config


def check_keys(overrides: Mapping[str, Any], plain: PreTrainedConfig) -> None:
    """Raises UserError for a key that is given or that the configuration does not have, with the nearest one."""
    for key in overrides:
        if key in GIVEN:
            raise UserError(f"model.{key}: it follows from the data, the backbone and the model's name; leave it out")
        if not hasattr(plain, key):
            near = difflib.get_close_matches(key, plain.to_dict(), n=1, cutoff=0.4)
            hint = f"; did you mean model.{near[0]}?" if near else ""
            raise UserError(f"model.{key}: {plain.model_type} has no such configuration key{hint}")


@contextmanager
def accepting(model_type: str, overrides: Mapping[str, Any]) -> Iterator[None]:
    """Raises UserError in place of what a configuration raises in the block for the overrides in it."""
    try:
        yield
    except Exception as error:  # transformers' strict configurations raise kinds of their own
        fault = str(error).splitlines()[-1].strip()
        raise UserError(f"model: {model_type} refuses {dict(overrides)}: {fault}") from error


def build_model(config: PreTrainedConfig, overrides: Mapping[str, Any]) -> PreTrainedModel:
    """An untrained model. Raises UserError where none can be built with the overrides that are in its configuration."""
    kind = class_to_load(config)
    try:
        return AutoModelForObjectDetection.from_config(config) if kind is AutoModelForObjectDetection else kind(config)
    except (ValueError, RuntimeError, ZeroDivisionError, AssertionError) as error:  # widths that do not divide, empty layers
        if "tie_weights_keys" in str(error):  # transformers finds no second head to tie to the first
            raise UserError(f"model.decoder_layers: {config.model_type} needs at least 2 decoder layers") from error
        fault = f"no {config.model_type} can be built with {dict(overrides)}: {error}"
        raise UserError(f"model: {fault}; change these values") from error


@torch.no_grad()
def _open_frozen_norms(backbone: nn.Module) -> None:
    """timm starts the last norm of a residual block at zero, to be trained from there: frozen at zero, the block would never
    learn anything."""
    for name, buffer in backbone.named_buffers():
        if name.endswith("weight") and not buffer.any():
            buffer.fill_(1.0)
