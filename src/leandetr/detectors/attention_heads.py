"""The heads of the attention of encoder and decoder, dense and deformable.

A head is its rows of all projections into the attention, in deformable attention of the sampling offsets and weights too, and
its columns of the projection out of it. The width of a head and the scale of its logits stay what they were.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from leandetr.detectors.families.registry import family_of
from leandetr.detectors.units import Gate, Part, Units

INSIDE = re.compile(r"model\.(encoder|decoder)\.")
DEFORMABLE = ("value_proj", "sampling_offsets", "attention_weights")


def attention_heads(model: PreTrainedModel) -> dict[str, Units]:
    """Those that can leave, by the name of the attention, in the model's order."""
    bound = family_of(model.config).bound_heads
    found = {}
    for name, module in model.named_modules():
        if INSIDE.match(name) and name.rpartition(".")[2] not in bound and (units := _heads_of(module)) is not None:
            found[name] = units
    return found


def whole_attentions(model: PreTrainedModel) -> list[str]:
    """Names of the attentions of encoder and decoder whose heads must stay."""
    found = attention_heads(model)
    names: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in (*names, *found))
        if INSIDE.match(name) and "Attention" in type(module).__name__ and not inside and name not in found:
            names.append(name)
    return names


def _heads_of(module: nn.Module) -> Units | None:
    attention: Any = module
    linears = {name: layer for name, layer in module.named_children() if isinstance(layer, nn.Linear)}
    if "o_proj" in linears and "v_proj" in linears and hasattr(module, "head_dim"):
        out, head = linears.pop("o_proj"), int(attention.head_dim)
        count = out.in_features // head
        counted = [(module, "num_attention_heads", 1)] if hasattr(module, "num_attention_heads") else []
        into = [linears.pop("v_proj"), *linears.values()]
    elif "output_proj" in linears and all(name in linears for name in DEFORMABLE):
        out, count = linears["output_proj"], int(attention.n_heads)
        head = out.in_features // count
        counted = [(module, "n_heads", 1), (module, "d_model", head)]  # it takes its heads' width from these two
        into = [linears[name] for name in DEFORMABLE]
    else:
        return None
    rows = (Part(layer, size=layer.out_features // count) for layer in into)
    parts = (*rows, Part(out, reads=True, size=head))
    return Units("heads", parts, (Gate(out, size=head),), whole=module, counted=tuple(counted), together=1)
