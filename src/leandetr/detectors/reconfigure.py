"""A trained detector with other values of its configuration: fewer layers, narrower layers, other numbers of queries.

What has the same name and shape keeps its weights. What became smaller gets a selection of them (Xu et al., Initializing Models
with Larger Ones, ICLR 2024): of the layers the first, and along every dimension of a weight that shrank elements at even
distances, so that the outputs that one layer keeps are the inputs that the next one keeps. What grew has the old weights first
and new ones after them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from leandetr.detectors.create import accepting, build_model, check_keys, check_size
from leandetr.detectors.detector import Detector
from leandetr.detectors.families.registry import family_of
from leandetr.detectors.image_size import check_answers
from leandetr.detectors.preprocessing import resized_to
from leandetr.detectors.prunable import pruned_units
from leandetr.errors import UserError

ANCHORS = ("anchor_image_size", "eval_size")  # for which RT-DETR's lineage keeps anchors and position embeddings ready


@dataclass(frozen=True)
class WeightChange:
    """Names of the new model's weights by where they come from: as they were, a selection of larger ones, and, wholly or in
    part, nowhere; and of the old model's that are left out."""

    kept: list[str]
    selected: list[str]
    new: list[str]
    dropped: list[str]

    def __str__(self) -> str:
        counts = {
            "weights kept": self.kept,
            "selected from larger ones": self.selected,
            "new": self.new,
            "left out": self.dropped,
        }
        first = [f"{len(names)} {what}" for what, names in counts.items()]
        return ", ".join(text + (f" (first {names[0]})" if names else "") for text, names in zip(first, counts.values()))


def reconfigure(detector: Detector, values: Mapping[str, Any]) -> tuple[Detector, WeightChange]:
    """A detector of the same family, classes and preprocessing with other configuration values, filled from this one.

    Raises UserError for an unknown key, one that follows from data or backbone, values that no model can be built with, widths
    and heads of a pruned detector, and a quantized detector.
    """
    old, family = detector.config, detector.family
    check_keys(values, old)
    if getattr(old, "quantization_config", None) is not None:
        raise UserError(f"a quantized detector cannot have another {', '.join(values)}; change the float detector")
    asked = [key for key in values if key in ("encoder_ffn_dim", "decoder_ffn_dim") or key.endswith("attention_heads")]
    if asked and pruned_units(old):
        raise UserError(f"model.{asked[0]}: layers that were pruned have widths and heads of their own; leave it out")
    config = copy.deepcopy(old)
    with accepting(config.model_type, values):
        for key, value in values.items():
            setattr(config, key, value)
    with torch.random.fork_rng(devices=[]):  # weights that are all copied use up no randomness
        model = build_model(config, values)
        family.initialise(model)
    change = _fill(model, detector.model)
    return Detector(model, detector.preprocessing, detector.class_map).eval(), change


def resize_queries(detector: Detector, count: int) -> Detector:
    """With so many object queries: of learned ones the first.

    Raises UserError for a number below 1, and for a detector with distillation queries.
    """
    if count < 1:
        raise UserError(f"{count} queries are too few; ask for at least 1")
    if getattr(detector.config, "distillation_queries", 0):
        raise UserError("a detector with distillation queries keeps its number of queries; leave out --queries")
    if count == detector.config.num_queries:
        return detector
    found, _ = reconfigure(detector, detector.family.query_counts(detector.config, count))
    if found.preprocessing.size is not None:
        check_answers(found, found.preprocessing.size, f"{count} queries")
    return found


def resize_images(detector: Detector, size: tuple[int, int] | int) -> Detector:
    """For images squeezed to a fixed (height, width), or resized to a shorter side.

    Position embeddings of images are computed, or resampled by the model itself, in every family; what RT-DETR's lineage keeps
    ready for one size is forgotten.

    Raises UserError for a size that the family cannot take, with the nearest that it can, or in which there are fewer cells
    than queries.
    """
    config = detector.config
    check_size(config.model_type, size, detector.family.divisor(config.backbone_config.to_dict()))
    ready = {key: None for key in ANCHORS if getattr(config, key, None) is not None}
    if ready:
        detector, _ = reconfigure(detector, ready)
    found = Detector(detector.model, replace(detector.preprocessing, **resized_to(size)), detector.class_map)
    if isinstance(size, tuple):
        check_answers(found, size, f"image size {size[0]} {size[1]}")
    return found


@torch.no_grad()
def _fill(model: PreTrainedModel, source: PreTrainedModel) -> WeightChange:
    family = family_of(model.config)
    own, old = model.state_dict(), source.state_dict()
    kept: list[str] = []
    selected: list[str] = []
    new: list[str] = []
    used: set[str] = set()
    for key, value in own.items():
        origin = family.weight_before(key, source.config, model.config)
        if origin not in old:
            new.append(key)
            continue
        used.add(origin)
        before = old[origin]
        if before.shape == value.shape:
            value.copy_(before)
            kept.append(key)
            continue
        groups = family.query_groups(key, model.config)
        before, target = (t.unflatten(0, (groups, -1)) if groups else t for t in (before, value))
        if before.dim() != target.dim():
            new.append(key)
            continue
        common = [min(sides) for sides in zip(before.shape, target.shape, strict=True)]
        part = before
        for dim, side in enumerate(common):
            if side < before.shape[dim]:
                part = part.index_select(dim, _evenly(before.shape[dim], side, first=bool(groups)))
        target[tuple(slice(side) for side in common)] = part
        (selected if common == list(target.shape) else new).append(key)
    return WeightChange(kept, selected, new, [key for key in old if key not in used])


def _evenly(old: int, count: int, first: bool) -> Tensor:
    """`count` of `old` indices: the first, or at even distances."""
    return torch.arange(count) if first else torch.arange(count) * old // count
