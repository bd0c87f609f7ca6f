"""Checkpoints as the papers' authors published them: a file in their own layout fills a transformers model.

Each family with such files has their `Layout`. Its rules are checked from both ends: each tensor of the file must have a place
in the model, of the same shape, and each weight of the model must come from the file.
"""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
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


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The state dict inside a published file: the averaged weights where there are any, else "model" or "state_dict".

    Raises UserError for a missing or damaged file, a pickle that holds more than tensors and plain values, and a file in which
    no state dict is found.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; name an existing checkpoint")
    try:
        if path.suffix == ".safetensors":
            content: object = load_file(path)
        else:
            # the authors' training scripts also store their arguments, which are plain values in a Namespace
            with torch.serialization.safe_globals([argparse.Namespace]):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is damaged or holds Python objects besides tensors, which can run code when they are read; "
            "save its state dict alone, with safetensors.torch.save_file"
        ) from error
    except (OSError, RuntimeError, EOFError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read as a checkpoint; it may be truncated, download it again") from error
    for keys in (("ema", "module"), ("model",), ("state_dict",)):
        content = _inside(content, keys)
    if not isinstance(content, Mapping) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path} holds no state dict; save one, or a dict with it under 'model' or 'state_dict'")
    return {name.removeprefix("module."): value for name, value in content.items()}


def _inside(content: object, keys: tuple[str, ...]) -> object:
    """What nested mappings hold under `keys`; the content itself where they do not."""
    found = content
    for key in keys:
        if not isinstance(found, Mapping) or not isinstance(found.get(key), Mapping):
            return content
        found = found[key]
    return found
