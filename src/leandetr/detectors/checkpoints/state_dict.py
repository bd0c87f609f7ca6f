"""The tensors in a file of weights, by name; code in it is never run."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from leandetr.errors import UserError

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


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
