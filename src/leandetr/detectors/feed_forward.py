"""The feed-forward layers of encoder and decoder, and the hidden units that they have.

    y = W2 f(W1 x + b1) + b2,    or, gated,    y = W2 (f(W1 x + b1) * (W3 x + b3)) + b2

A hidden unit is a row of W1 (and W3) with its bias and a column of W2. Without one, the others compute what they did. A pruned
layer's number of them stands in the configuration, `pruned_ffn`: layer -> units; other layers have the configuration's own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

NAMES = re.compile(r"model\.(encoder|decoder)(\.aifi\.\d+)?\.layers\.\d+(\.mlp)?")
#: what the linear layers into the hidden units and out of them are called
PARTS = ((("fc1",), "fc2"), (("layers.0",), "layers.1"), (("gate_proj", "up_proj"), "down_proj"))


@dataclass(frozen=True)
class FeedForward:
    """into: linear layers whose outputs are the hidden units. out: that whose inputs they are."""

    into: tuple[nn.Linear, ...]
    out: nn.Linear

    @property
    def width(self) -> int:
        """How many hidden units it has."""
        return self.out.in_features

    @torch.no_grad()
    def keep(self, units: Tensor) -> None:
        """Leave out all hidden units but these, indices (K,) in the order that they are to have; in place."""
        for linear in self.into:
            linear.weight = nn.Parameter(linear.weight[units], linear.weight.requires_grad)
            if linear.bias is not None:
                linear.bias = nn.Parameter(linear.bias[units], linear.bias.requires_grad)
            linear.out_features = len(units)
        self.out.weight = nn.Parameter(self.out.weight[:, units], self.out.weight.requires_grad)
        self.out.in_features = len(units)


def feed_forward_layers(model: PreTrainedModel) -> dict[str, FeedForward]:
    """Those of a float detector's model, by name, in its order."""
    found = {}
    for name, block in model.named_modules():
        linears = dict(block.named_modules()) if NAMES.fullmatch(name) else {}
        for into, out in PARTS:
            if all(isinstance(linears.get(part), nn.Linear) for part in (*into, out)):
                found[name] = FeedForward(tuple(linears[part] for part in into), linears[out])
    return found


def pruned_widths(config: PreTrainedConfig) -> dict[str, int]:
    """Layer -> hidden units, of the layers that were pruned."""
    return dict(getattr(config, "pruned_ffn", None) or {})


def apply_widths(model: PreTrainedModel, widths: Mapping[str, int]) -> None:
    """Give a new model's layers so many hidden units, the first ones. Names of layers that it lacks, as a detector cut to fewer
    has, are left out of its configuration.

    Raises ValueError for a number below 1 or above what the layer has.
    """
    layers = feed_forward_layers(model)
    there = {name: width for name, width in widths.items() if name in layers}
    for name, width in there.items():
        layer = layers[name]
        if not isinstance(width, int) or not 1 <= width <= layer.width:
            raise ValueError(f"pruned_ffn: {width} hidden units in {name}, which has 1 to {layer.width}")
        layer.keep(torch.arange(width, device=layer.out.weight.device))
    model.config.pruned_ffn = there
