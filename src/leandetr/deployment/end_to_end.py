"""Pre- and post-processing as part of the graph: a photograph's bytes go in, detections come out.

    images (B, H, W, 3) uint8, RGB, of any height and width   ->   scores (B, k), highest first
                                                                   labels (B, k) int64, positions in the metadata's class names
                                                                   boxes (B, k, 4), (x0, y0, x1, y1) in pixels of the images

The engines' own antialiased resizing differs from the one that detectors are trained with by up to 18 grey levels (OpenVINO
2026.4), so it is written as what it is, a product with two matrices of triangle filters, and rounded where that rounds.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from leandetr.detectors.detector import Detector
from leandetr.detectors.postprocess import ranked
from leandetr.structures import Preprocessing


class EndToEnd(nn.Module):
    """A detector from photographs to detections.

    Args:
        detector: in evaluation mode.
        preprocessing: of a fixed size, and bilinear.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, detector: Detector, preprocessing: Preprocessing) -> None:
        assert preprocessing.size is not None
        super().__init__()
        self.model, self.head = detector.model, detector.head
        self.size, self.antialias = preprocessing.size, preprocessing.antialias
        self.register_buffer("mean", torch.tensor(preprocessing.mean)[:, None, None] * 255)
        self.register_buffer("std", torch.tensor(preprocessing.std)[:, None, None] * 255)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pixels = resize(images.permute(0, 3, 1, 2).float(), self.size, self.antialias)
        output = self.model(pixel_values=(pixels - self.mean) / self.std)
        one = torch.ones(1, device=images.device)
        size = torch.stack([one * images.shape[1], one * images.shape[2]], 1)
        return ranked(output.logits, output.pred_boxes, self.head, size)


def resize(pixels: Tensor, size: tuple[int, int], antialias: bool = True) -> Tensor:
    """Bilinear resizing, antialiased as Pillow and torchvision do it to bytes: rows first, each pass rounded; or else as
    PyTorch does it to floats.

    Theirs hold the filters in 16-bit integers, so that a value close to a half may be rounded to the other side.

    Args:
        pixels: (B, C, H, W) float32 with integer values from 0 to 255.
        size: (height, width).

    Returns:
        (B, C, height, width) float32, with integer values where antialiased.
    """
    height, width = size
    rows = pixels @ triangle_filters(pixels.shape[3], width, antialias, pixels.device).T
    columns = triangle_filters(pixels.shape[2], height, antialias, pixels.device)
    return torch.round(columns @ torch.round(rows)) if antialias else columns @ rows


def triangle_filters(source: int, target: int, antialias: bool, device: torch.device) -> Tensor:
    """(target, source): the weights of the source pixels in each target pixel, which sum to 1.

    A triangle around the target pixel's centre, one source pixel wide on each side, or, antialiased, wider by the factor of a
    reduction.
    """
    scale = torch.ones(1, device=device) * source / target
    centres = (torch.arange(target, device=device) + 0.5) * scale
    distances = (torch.arange(source, device=device) + 0.5)[None] - centres[:, None]
    widened = distances / scale.clamp(min=1) if antialias else distances
    weights = (1 - widened.abs()).clamp(min=0)
    return weights / weights.sum(1, keepdim=True)
