"""Bilinear sampling, which deformable attention and AdaMixer are made of, as rows that are picked from a table.

Where an engine has no kernel for `grid_sample`, its compiler makes an index for every number that is read: C times as many
as there are places.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

aten = torch.ops.aten
BILINEAR, ZEROS = 0, 0


def pick_rows(module: fx.GraphModule) -> None:
    """Replace every bilinear sampling between zeros in a folded graph (`folding.py`), in place."""
    for node in list(module.graph.nodes):
        if node.target is not aten.grid_sampler.default or tuple(node.args[2:]) != (BILINEAR, ZEROS, False):
            continue
        values = [each.meta["val"] for each in node.args[:2]]
        traced = make_fx(sample)(*(torch.empty_strided(each.shape, each.stride()).zero_() for each in values)).graph
        given = dict(zip(traced.find_nodes(op="placeholder"), node.args[:2], strict=True))
        with module.graph.inserting_before(node):
            picked = module.graph.graph_copy(traced, given)
        node.replace_all_uses_with(picked)
        module.graph.erase_node(node)
    module.recompile()


def sample(pixels: Tensor, places: Tensor) -> Tensor:
    """`grid_sample(pixels, places, align_corners=False)`: (B, C, H, W) at (B, h, w, 2), x and y from -1 to 1, as
    (B, C, h, w)."""
    images, channels, height, width = pixels.shape
    high, wide = height + 2, width + 2  # with a border of zeros, for what lies outside
    table = F.pad(pixels, (1, 1, 1, 1)).permute(0, 2, 3, 1).reshape(-1, channels)
    first = torch.arange(images, dtype=places.dtype).view(-1, 1, 1) * (high * wide)
    x, y = (((places[..., axis] + 1) * side - 1) / 2 for axis, side in enumerate((width, height)))
    left, top = x.floor(), y.floor()
    right_share, bottom_share = x - left, y - top
    columns = [((left + step).clamp(-1, width) + 1, share) for step, share in ((0, 1 - right_share), (1, right_share))]
    rows = [((top + step).clamp(-1, height) + 1, share) for step, share in ((0, 1 - bottom_share), (1, bottom_share))]
    found = [
        table.index_select(0, (first + row * wide + column).long().flatten()) * (across * down).reshape(-1, 1)
        for row, down in rows
        for column, across in columns
    ]
    return (found[0] + found[1] + found[2] + found[3]).view(*places.shape[:3], channels).permute(0, 3, 1, 2)
