"""Layer-wise learning rates: the nearer to the image, the slower (ELECTRA, Clark et al., ICLR 2020; BEiT, Bao et al., 2022).

A backbone of N blocks has N + 2 depths: 0 is what comes before them (patches, positions, a stem), n the n-th block, N + 1 what
comes after the last. A parameter at depth n has the backbone's rate times

    decay^(N + 1 - n)

as in timm and RF-DETR. A block is what has a number of its own: a layer of a vision transformer, a residual block of a stage,
and what a stage has beside those.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

#: a numbered layer, and, where it is a stage, the numbered block in it: encoder.layer.3, layer1.0, stages.2.layers.1
BLOCK = re.compile(r"^.*?\b(?:layers?|blocks|stages)[._]?\d+\.(?:(?:(?:layers?|blocks)\.)?\d+\.)?")


def factors(names: Sequence[str], decay: float) -> dict[str, float]:
    """Names of a backbone's parameters, in the order of its layers -> the factor on its rate.

    >>> factors(["stem.weight", "blocks.0.weight", "blocks.1.weight", "blocks.1.bias", "norm.weight"], 0.5)
    {'stem.weight': 0.125, 'blocks.0.weight': 0.25, 'blocks.1.weight': 0.5, 'blocks.1.bias': 0.5, 'norm.weight': 1.0}
    """
    found = {name: match[0] for name in names if (match := BLOCK.match(name))}
    blocks = list(dict.fromkeys(found.values()))
    depths, first = {}, min((list(names).index(name) for name in found), default=len(names))
    for place, name in enumerate(names):
        outside = 0 if place < first else len(blocks) + 1
        depths[name] = blocks.index(found[name]) + 1 if name in found else outside
    return {name: decay ** (len(blocks) + 1 - depth) for name, depth in depths.items()}
