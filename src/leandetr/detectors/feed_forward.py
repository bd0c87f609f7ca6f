"""The hidden units of feed-forward layers.

    y = W2 f(W1 x + b1) + b2,    or, gated,    y = W2 (f(W1 x + b1) * (W3 x + b3)) + b2

A hidden unit is a row of W1 (and W3) with its bias and a column of W2.
"""

from __future__ import annotations

import re

from torch import nn
from transformers import PreTrainedModel

from leandetr.detectors.units import Gate, Part, Structure, Units

NAMES = re.compile(r"model\.(encoder|decoder)(\.aifi\.\d+)?\.layers\.\d+(\.mlp)?")
#: what the linear layers into the hidden units and out of them are called
PARTS = ((("fc1",), "fc2"), (("layers.0",), "layers.1"), (("gate_proj", "up_proj"), "down_proj"))


def hidden_units(model: PreTrainedModel) -> dict[str, Units]:
    """Of encoder and decoder, by the name of the block with the layers, in the model's order."""
    found = {}
    for name, block in model.named_modules():
        if NAMES.fullmatch(name) and (units := hidden_units_of(block, "ffn")) is not None:
            found[name] = units
    return found


def hidden_units_of(block: nn.Module, structure: Structure) -> Units | None:
    """Of the layers in a block; None where it has none."""
    linears = dict(block.named_modules())
    for into, out in PARTS:
        if all(isinstance(linears.get(part), nn.Linear) for part in (*into, out)):
            rows = tuple(Part(linears[part]) for part in into)
            return Units(structure, (*rows, Part(linears[out], reads=True)), (Gate(linears[out]),))
    return None
