"""Where the image lies in a padded batch, and cutting it out on the device."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def shares(pixel_mask: Tensor) -> Tensor:
    """(B, H, W) -> (B, 2), how much of the padded frame's width and height the image fills."""
    return torch.stack([pixel_mask[:, 0].float().mean(1), pixel_mask[:, :, 0].float().mean(1)], 1)


def cut_out(maps: Tensor, pixel_mask: Tensor, size: Sequence[int]) -> Tensor:
    """Stretch each image's own part of a padded batch, bilinearly, over a whole map.

    maps (B, C, h, w): pixels or features that cover the padded frame. pixel_mask (B, H, W): 1 where there is image, from the
    top left corner on. -> (B, C, *size).

    The images' sizes are on the device alone; a sampling grid that is computed there spares a copy to the host.
    """
    width, height = shares(pixel_mask).unbind(1)
    nothing = torch.zeros_like(width)
    corner = torch.stack([width, nothing, width - 1, nothing, height, height - 1], -1).view(-1, 2, 3)
    grid = F.affine_grid(corner, [*maps.shape[:2], *size], align_corners=False)
    return F.grid_sample(maps, grid.to(maps), mode="bilinear", align_corners=False)
