"""What a configuration asks for, held against the weights beside it: a damaged number takes no memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from leandetr.detectors.describe import count_parameters
from leandetr.errors import UserError

COUNTED = ("layers", "depths", "blocks", "levels")
LARGE = 2048  # a number above it may be a damaged width
OTHER = ("pruned_units", "dataset_category_ids")  # widths by the names of layers; ids by the data set
PACKED = 32  # bits of a weight that is computed with, per bit that a file may spend on it
SPARE = 1 << 20  # parameters: pruned models are built whole first


def check_layers(folder: Path, config: dict[str, Any], tensors: int) -> None:
    """Raises UserError where config.json says more layers, blocks or levels than the weights have tensors."""
    for name, number in _numbers(config):
        if any(word in name.rpartition(".")[2] for word in COUNTED) and number > tensors:
            raise UserError(
                f"{folder}/config.json: {name} says {number}, and the weights are {tensors} tensors in all; mend it or save "
                "the model again"
            )


def check_widths(folder: Path, config: PreTrainedConfig, shapes: Sequence[Sequence[int]]) -> None:
    """Raises UserError where config.json asks for far more parameters than weights of these shapes are. Only where it has
    a number that few models have is the model built for that, without memory."""
    large = [(name, number) for name, number in _numbers(config.to_dict()) if number > LARGE]
    if not large:
        return
    asked, found = count_parameters(config), sum(map(math.prod, shapes))
    if asked > PACKED * (found + SPARE):
        name, number = max(large, key=lambda one: one[1])
        raise UserError(
            f"{folder}/config.json: {name} says {number}, by which the model has {asked:.3g} parameters, and the weights are "
            f"{found:.3g}; mend it or save the model again"
        )


def _numbers(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, int]]:
    """Every whole number of a configuration that may be one of layers or a width, with its key."""
    for key, value in ((str(key), value) for key, value in config.items()):
        if key in OTHER or "temperature" in key:
            continue
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{key}.")
        else:
            numbers = value if isinstance(value, list | tuple) else [value]
            yield from ((f"{prefix}{key}", number) for number in numbers if isinstance(number, int))
