"""Teachers that are no detectors: frozen vision models, whose maps of patches a student's features learn to resemble."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoBackbone, AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING_NAMES

from leandetr.detectors.backbones import describe_backbone, load_backbone_weights
from leandetr.detectors.checkpoints.state_dict import SUFFIXES, read_checkpoint
from leandetr.detectors.detector import Detector
from leandetr.detectors.packaged_weights import PACKAGES, packaged_state
from leandetr.distillation.teacher import Teacher, View
from leandetr.errors import UserError
from leandetr.structures import Batch, DetectorOutput, Preprocessing

COARSEST = 32  # stride of the student's map that is aligned, where its levels go further
DINOV2_HEAD = 64  # channels of a head in every size


class VisionModel(NamedTuple):
    """model: (B, 3, h p, w p) -> (B, channels, h, w), behind its final norm. patch: p. mean, std: its normalisation."""

    model: nn.Module
    channels: int
    patch: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


class VisionTeacher(Teacher):
    """A frozen vision model, which answers with one map of the student's size, its `patches`, and nothing else.

    It sees the student's augmented images, padding included, resized so that its patches are the cells of the student's map:
    the coarsest with a stride of at most `COARSEST`, that which its backbone ends with.

    Args:
        source: NAME:WEIGHTS, see `load_vision_model`.
        student: whose batches it sees.

    Raises:
        UserError: see `load_vision_model`.
    """

    gives = frozenset({"patches"})
    detects = False

    def __init__(self, source: str, student: Detector) -> None:
        self.source = source
        model = load_vision_model(source)
        self.model, self.channels, self.patch = model.model.eval().requires_grad_(False), model.channels, model.patch
        plain = Preprocessing(size=None, shortest_edge=1, mean=model.mean, std=model.std)
        self.view, self.stride = View(student.preprocessing, plain), stride_of(student)

    @torch.no_grad()
    def __call__(self, batch: Batch, asked: Collection[str] = ()) -> tuple[DetectorOutput, Batch]:
        pixels, _ = self.view(batch["pixel_values"], batch["pixel_mask"])
        if next(self.model.parameters()).device != pixels.device:
            self.model.to(pixels.device)
        size = [math.ceil(side / self.stride) * self.patch for side in pixels.shape[-2:]]
        with torch.autocast("cuda", torch.float16, enabled=pixels.is_cuda):
            patches = self.model(F.interpolate(pixels, size, mode="bicubic", align_corners=False, antialias=True))
        unasked: Any = None
        answer = DetectorOutput(unasked, unasked, unasked, unasked, unasked, patches=patches.float())
        return answer, batch


def names_vision_model(source: str | Path) -> bool:
    """Whether `load_vision_model` is meant: NAME:WEIGHTS with the name of a backbone, and no path."""
    name, colon, _ = str(source).partition(":")
    known = (name in MODEL_FOR_BACKBONE_MAPPING_NAMES and name != "timm_backbone") or timm.is_model(name)
    return bool(colon) and known and not Path(source).exists()


def load_vision_model(source: str) -> VisionModel:
    """NAME:WEIGHTS: a backbone of transformers by its model type (a `dinov2` in the size that the weights have), or a model of
    timm with patches; weights as `load_backbone_weights` takes them.

    Raises:
        UserError: weights that cannot be had or do not fit; a model of timm without patches.
    """
    name, _, weights = source.partition(":")
    if name not in MODEL_FOR_BACKBONE_MAPPING_NAMES:
        return _of_timm(name, weights)
    described = describe_backbone(name, 1, True, _dinov2_sizes(weights) if name == "dinov2" else {})
    backbone = AutoBackbone.from_config(config=described.config)
    load_backbone_weights(backbone, described.config, weights)
    patch = getattr(described.config, "patch_size", None)
    stride = patch if isinstance(patch, int) and name.startswith("dino") else described.strides[-1]
    return VisionModel(_LastMap(backbone), described.channels[-1], stride, described.mean, described.std)


def stride_of(student: Detector) -> int:
    """Of the student's map that is aligned, seen on one empty image."""
    side = student.preprocessing.size or (256, 256)
    training, device = student.training, next(student.parameters()).device
    with torch.no_grad():
        maps = student.eval()(torch.zeros(1, 3, *side, device=device)).features
    student.train(training)
    strides = [round(side[0] / level.shape[-2]) for level in maps]
    return max((stride for stride in strides if stride <= COARSEST), default=min(strides))


class _LastMap(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, pixels: Tensor) -> Tensor:
        return self.backbone(pixels).feature_maps[-1]


class _Patches(nn.Module):
    """A vision transformer of timm, without its class token and registers."""

    def __init__(self, model: Any, patch: int) -> None:
        super().__init__()
        self.model, self.patch = model, patch

    def forward(self, pixels: Tensor) -> Tensor:
        tokens = self.model.forward_features(pixels)[:, self.model.num_prefix_tokens :]
        height, width = (side // self.patch for side in pixels.shape[-2:])
        return tokens.transpose(1, 2).unflatten(2, (height, width))


def _of_timm(name: str, weights: str) -> VisionModel:
    try:
        model: Any = timm.create_model(name, pretrained=weights == "hub", num_classes=0, dynamic_img_size=True)
        patch = int(model.patch_embed.patch_size[0])
    except (TypeError, AttributeError) as error:
        raise UserError(f"{name} is no vision transformer with patches; name one, such as vit_small_patch14_dinov2") from error
    except Exception as error:  # the hub client raises a dozen kinds, by cause of the failure
        raise UserError(f"{name}: its weights could not be downloaded ({type(error).__name__}); use {name}:FILE") from error
    if weights != "hub":
        if not weights.endswith(SUFFIXES):
            raise UserError(f"weights {weights!r} of {name}: name a file ({', '.join(SUFFIXES)}) or hub")
        state = {key: value for key, value in read_checkpoint(Path(weights)).items() if not key.startswith("head.")}
        own = model.state_dict()
        wrong = sorted(key for key in own if key not in state or own[key].shape != state[key].shape)
        if wrong:
            raise UserError(f"{weights} does not fit {name}: {', '.join(wrong[:3])} missing or of another shape")
        model.load_state_dict(state, strict=False)
    normalised = model.default_cfg
    return VisionModel(_Patches(model, patch), model.num_features, patch, normalised["mean"], normalised["std"])


def _dinov2_sizes(weights: str) -> dict[str, Any]:
    """The configuration of a DINOv2 as large as its weights say; {} where they cannot be read yet."""
    if weights in PACKAGES:
        state = packaged_state(weights, AutoConfig.for_model("dinov2"))
    elif weights.endswith(SUFFIXES):
        state = read_checkpoint(Path(weights))
    else:
        return {}
    found = {key.removeprefix("backbone."): value.shape for key, value in state.items()}
    positions, projection = (
        found.get("embeddings.position_embeddings"),
        found.get("embeddings.patch_embeddings.projection.weight"),
    )
    if positions is None or projection is None:
        return {}
    return {
        "hidden_size": positions[2],
        "num_attention_heads": positions[2] // DINOV2_HEAD,
        "num_hidden_layers": len({key.split(".")[2] for key in found if key.startswith("encoder.layer.")}),
        "patch_size": projection[-1],
        "image_size": math.isqrt(positions[1] - 1) * projection[-1],
    }
