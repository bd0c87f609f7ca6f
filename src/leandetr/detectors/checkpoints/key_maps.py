"""Checkpoints as the papers' authors published them: a file in their own layout fills a transformers model.

Each family with such files has their `Layout`. Its rules are checked from both ends: each tensor of the file must have a place
in the model, of the same shape, and each weight of the model must come from the file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor
from transformers import PreTrainedModel

from leandetr.detectors.families.layout import Layout, Rules
from leandetr.detectors.families.registry import FAMILIES
from leandetr.errors import UserError, unknown


def layouts() -> dict[str, Layout]:
    """By model type, of the families whose published files can be read."""
    return {model_type: family.layout for model_type, family in FAMILIES.items() if family.layout is not None}


def fill(model: PreTrainedModel, published: Mapping[str, Tensor], source: str) -> None:
    """Fill a model from a published state dict; `source` names it in errors.

    Args:
        model: built with the file's own sizes and number of classes: DETR-R50 on COCO has `num_labels=91`, SMCA-DETR 92,
            AdaMixer and RT-DETR 80.

    Raises:
        UserError: the model type has no published layout here; keys are missing, unexpected or of other shapes (names the first
            three).
    """
    kind, known = model.config.model_type, layouts()
    if kind not in known:
        raise unknown("published checkpoint layout", kind, known)
    no_weights = re.compile(known[kind].no_weights)
    weights = _renamed(published, known[kind].rules, no_weights)
    own = model.state_dict(keep_vars=True)
    given = {id(own[key]) for key in weights if key in own}  # a tied weight has several keys, and one of them is enough
    missing = [key for key, value in own.items() if id(value) not in given and not no_weights.search(key)]
    unexpected = [name for key, (name, _) in weights.items() if key not in own]
    shapes = [
        f"{name} {tuple(value.shape)} where the model has {tuple(own[key].shape)}"
        for key, (name, value) in weights.items()
        if key in own and value.shape != own[key].shape
    ]
    faults = [
        f"{len(keys)} {fault} ({', '.join(keys[:3])})"
        for fault, keys in (("missing", missing), ("unexpected", unexpected), ("of other shapes", shapes))
        if keys
    ]
    if faults:
        raise UserError(
            f"{source} does not fit this {kind}: {'; '.join(faults)}; "
            "set the backbone, sizes and number of classes of the checkpoint"
        )
    model.load_state_dict({key: value for key, (_, value) in weights.items()}, strict=False)


def _renamed(published: Mapping[str, Tensor], rules: Rules, no_weights: re.Pattern[str]) -> dict[str, tuple[str, Tensor]]:
    """Published state dict -> {the model's key: (published key, tensor)}; fused projections are split in three."""
    renamed = {}
    for name, value in published.items():
        if no_weights.search(name):
            continue
        key = name
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        prefix, fused, kind = key.partition("in_proj_")
        if fused:
            for projection, part in zip("qkv", value.chunk(3), strict=True):
                renamed[f"{prefix}{projection}_proj.{kind}"] = name, part
        else:
            renamed[key] = name, value
    return renamed
