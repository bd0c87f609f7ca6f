"""Backbones by name: timm's and transformers', with weights from a hub, a file or a package that carries them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from transformers import AutoBackbone, AutoConfig, PreTrainedConfig, SwinBackbone, TimmBackboneConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING_NAMES

from leandetr.detectors.checkpoints.state_dict import SUFFIXES, read_checkpoint
from leandetr.detectors.packaged_weights import PACKAGES, packaged_state
from leandetr.detectors.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from leandetr.errors import UserError, unknown

HUB_SWINS = {  # (embed_dim, depths) -> trained on ImageNet at 224 x 224
    (96, (2, 2, 6, 2)): "microsoft/swin-tiny-patch4-window7-224",
    (96, (2, 2, 18, 2)): "microsoft/swin-small-patch4-window7-224",
    (128, (2, 2, 18, 2)): "microsoft/swin-base-patch4-window7-224",
}
#: where the file of a whole detector keeps it: of transformers, and of the authors of DETR's lineage
INSIDE = (
    "model.backbone.conv_encoder.model.",
    "model.backbone.model.",
    "model.backbone.backbone.",
    "model.conv_encoder.model.",
    "backbone.0.body.",
)
#: what files of DINOv2 call what transformers has since renamed
DINOV2_BEFORE = {
    ".attention.attention.query.": ".attention.q_proj.",
    ".attention.attention.key.": ".attention.k_proj.",
    ".attention.attention.value.": ".attention.v_proj.",
    ".attention.output.dense.": ".attention.o_proj.",
}


@dataclass(frozen=True)
class Backbone:
    """config: what transformers builds it from. channels and strides: of the chosen stages. mean, std: its normalisation."""

    config: PreTrainedConfig
    channels: list[int]
    strides: list[int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def describe_backbone(name: str, stages: int, frozen_norm: bool, overrides: dict[str, Any]) -> Backbone:
    """The last `stages` of the five resolutions of a timm model (`resnet18`, `tf_efficientnet_lite0`) or of a transformers
    backbone named by its model type (`rt_detr_resnet`, `swin`). `overrides` changes its configuration; `out_indices` in it
    chooses other stages.

    frozen_norm: BatchNorm keeps its statistics and scales; done by timm itself, because the replacement inside transformers'
    detectors drops the activation that timm fuses into its norms.

    Raises UserError for a name that neither library knows and for an unknown key, with the nearest one, and for values that do
    not fit each other.
    """
    if name in MODEL_FOR_BACKBONE_MAPPING_NAMES and name != "timm_backbone":
        refuse_unknown(overrides, AutoConfig.for_model(name))
        config = AutoConfig.for_model(name, **overrides)
        if "out_indices" not in overrides:
            deepest = len(config.stage_names) - 1
            config.out_indices = list(range(deepest - stages + 1, deepest + 1))
        mean, std = ((0.0,) * 3, (1.0,) * 3) if name.startswith(("rt_detr", "hgnet")) else (IMAGENET_MEAN, IMAGENET_STD)
    elif timm.is_model(name):
        refuse_unknown(overrides, TimmBackboneConfig())
        probe: Any = timm.create_model(name, features_only=True, pretrained=False)
        levels = len(probe.feature_info)
        chosen: dict[str, Any] = {
            "out_indices": list(range(levels - stages, levels)),
            "freeze_batch_norm_2d": frozen_norm,
        } | overrides
        config = TimmBackboneConfig(backbone=name, **chosen)
        config.use_pretrained_backbone = False
        mean, std = probe.default_cfg.get("mean", IMAGENET_MEAN), probe.default_cfg.get("std", IMAGENET_STD)
    else:
        raise unknown("backbone", name, [*timm.list_models(), *MODEL_FOR_BACKBONE_MAPPING_NAMES])
    try:
        channels, strides = _measure(config)
    except (ValueError, RuntimeError, IndexError, KeyError, TypeError) as error:
        raise UserError(
            f"model.backbone_config: no {name} can be built with {overrides}: {error}; change these values"
        ) from error
    return Backbone(config, channels, strides, tuple(mean), tuple(std))


def configured(kind: str, values: dict[str, Any], overrides: dict[str, Any]) -> PreTrainedConfig:
    """The configuration of a backbone of one family, which differs from transformers' default in `values`.

    Raises UserError for an unknown key, with the nearest one, and for values that do not fit each other.
    """
    refuse_unknown(overrides, AutoConfig.for_model(kind))
    try:
        return AutoConfig.for_model(kind, **values | overrides)
    except Exception as error:  # transformers' strict configurations raise kinds of their own
        fault = str(error).splitlines()[-1].strip()
        raise UserError(f"model.backbone_config: {kind} refuses {overrides}: {fault}; change these values") from error


def refuse_unknown(overrides: dict[str, Any], config: PreTrainedConfig) -> None:
    """Raises UserError for a key that the configuration of a backbone does not have, with the nearest one."""
    for key in overrides:
        if key not in config.to_dict():
            raise unknown("key of model.backbone_config", key, config.to_dict())


@torch.no_grad()
def _measure(config: PreTrainedConfig, side: int = 64) -> tuple[list[int], list[int]]:
    """Channels and strides of the feature maps, seen on one small image."""
    backbone = AutoBackbone.from_config(config=config).eval()
    maps = backbone(torch.zeros(1, 3, side, side)).feature_maps
    return [m.shape[1] for m in maps], [round(side / m.shape[-1]) for m in maps]


def load_backbone_weights(module: nn.Module, config: PreTrainedConfig, weights: str) -> None:
    """Fill a detector's backbone.

    Args:
        module: the backbone inside the detector.
        config: its configuration.
        weights: "hub" (pretrained weights of timm, or of a Swin its authors'; needs the network), a file of a backbone or of a
            detector with the same backbone (`.safetensors`, `.pth`, `.pt`, `.bin`; of a pickle nothing but tensors is read), or
            one of `PACKAGES`. The position embeddings of a DINOv2 are resampled to the image size, as the model itself does it.

    Raises:
        UserError: the weights cannot be had, or do not fit the backbone (names the first keys).
    """
    if weights in PACKAGES:
        state = packaged_state(weights, config)
    elif weights == "hub":
        state = _hub_state(module.config if isinstance(module, SwinBackbone) else config)  # it knows the stages that are used
    elif weights.endswith(SUFFIXES):
        state = read_checkpoint(Path(weights))
    else:
        known = f"{', '.join(SUFFIXES)}), hub, or a package that carries some ({', '.join(PACKAGES)})"
        raise UserError(f"weights {weights!r}: name a file ({known}")
    own = module.state_dict()
    fitting = _named_as(own, state)
    if "embeddings.cls_token" in own:
        _resample_positions(fitting, own, antialias=config.model_type == "rf_detr_dinov2")
    wanted = {key for key in own if not key.endswith(("num_batches_tracked", "mask_token"))}  # of pretraining alone
    wrong = sorted(wanted - fitting.keys()) or sorted(k for k, v in fitting.items() if own[k].shape != v.shape)
    if wrong:
        raise UserError(f"weights {weights} do not fit the backbone: {', '.join(wrong[:3])} missing or of another shape")
    module.load_state_dict(fitting, strict=False)


def _named_as(own: Mapping[str, Tensor], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those tensors of a file that a backbone has, under its names for them."""
    for inside in INSIDE:
        if any(key.startswith(inside) for key in state):
            state = {key.removeprefix(inside): value for key, value in state.items() if key.startswith(inside)}
    state = {key.removeprefix("_backbone."): value for key, value in state.items()}
    for old, new in DINOV2_BEFORE.items():
        state = {key.replace(old, new): value for key, value in state.items()}
    for prefix in ("", "_backbone.", "model.", "model._backbone."):  # the same weights under each library's own wrapper
        fitting = {prefix + key: value for key, value in state.items() if prefix + key in own}
        if fitting:
            break
    return fitting


def _resample_positions(fitting: dict[str, Tensor], own: Mapping[str, Tensor], antialias: bool) -> None:
    """Position embeddings (1, 1 + S * S, D) of a class token and a square of patches, for a square of another side."""
    key = "embeddings.position_embeddings"
    if key in fitting and (side := math.isqrt(own[key].shape[1] - 1)) ** 2 != (count := fitting[key].shape[1] - 1):
        token, patches = fitting[key].split([1, count], dim=1)
        square = patches.unflatten(1, (math.isqrt(count), -1)).permute(0, 3, 1, 2)
        square = nn.functional.interpolate(square, (side, side), mode="bicubic", align_corners=False, antialias=antialias)
        fitting[key] = torch.cat([token, square.flatten(2).transpose(1, 2)], 1)


def _hub_state(config: PreTrainedConfig) -> dict[str, Tensor]:
    name = getattr(config, "backbone", None)
    if name is None and config.model_type == "swin":
        name = _hub_swin(config)
    if name is None:
        raise UserError(
            f"weights hub: {config.model_type} backbones come with a whole checkpoint; give its hub id as the model"
        )
    try:
        if config.model_type == "swin":  # norms of the maps, which a classifier lacks, begin as they are
            return SwinBackbone.from_pretrained(name, config=config).state_dict()
        return timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # the hub client raises a dozen kinds, by cause of the failure
        raise UserError(f"weights hub: {name} could not be downloaded ({type(error).__name__}); use a local file") from error


def _hub_swin(config: PreTrainedConfig) -> str:
    """The id of the pretrained Swin of a configuration's size; UserError where there is none of this size."""
    size = config.embed_dim, tuple(config.depths)
    if size not in HUB_SWINS:
        known = "; ".join(f"embed_dim {width} and depths {list(depths)}" for width, depths in HUB_SWINS)
        raise UserError(f"weights hub: there is no Swin of embed_dim {size[0]} and depths {list(size[1])}; there is {known}")
    return HUB_SWINS[size]
