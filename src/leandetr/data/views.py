"""A view of a photograph in the making: cuts, padding and boxes first, pixels where a resize asks for them.

The steps draw from PyTorch's global generator what torchvision's transforms of the same names draw, in the same order, and make
the same pixels and boxes: a view follows from its seed as if they had made it. What they leave out is the work on pixels that
a later step cuts off or writes anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import ColorJitter, InterpolationMode
from torchvision.transforms.v2 import functional as F
from torchvision.tv_tensors import BoundingBoxFormat

CORNERS = BoundingBoxFormat.XYXY
#: `Preprocessing.resample` -> torchvision's mode, as transformers' image processors take it
INTERPOLATIONS = {
    "nearest": InterpolationMode.NEAREST_EXACT,
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
}
BRIGHTNESS, CONTRAST, SATURATION = range(3)  # as torchvision's `ColorJitter` numbers them


@dataclass(frozen=True)
class Resampling:
    """How a resize interpolates pixels, as the two values of the same names in `Preprocessing`."""

    resample: str
    antialias: bool


class View:
    """What the steps work on.

    Args:
        pixels: (3, h, w) uint8; fastest where the channels of a pixel lie side by side, as decoders leave them.
        boxes: (n, 4) float (x0, y0, x1, y1) in pixels; parts outside of the image are cut off.
    """

    def __init__(self, pixels: Tensor, boxes: Tensor) -> None:
        self._pixels = pixels
        self._top = self._left = 0  # of the view, in the frame of `_pixels`
        self._colour: Sequence[int] = (0, 0, 0)  # of what lies outside of them
        self.height, self.width = pixels.shape[-2:]
        self.boxes = F.clamp_bounding_boxes(boxes, CORNERS, self.size, "soft")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.height, self.width

    @property
    def pixels(self) -> Tensor:
        """(3, height, width) uint8, or float32 in [0, 1] after a resize without antialiasing."""
        if (self._top, self._left, *self.size) != (0, 0, *self._pixels.shape[-2:]):
            self._pixels = self._cut()
            self._top = self._left = 0
        return self._pixels

    def pad(self, left: int, top: int, right: int, bottom: int, colour: Sequence[int]) -> None:
        self._pixels, self._top, self._left, self._colour = self.pixels, -top, -left, colour
        self.boxes, (self.height, self.width) = F.pad_bounding_boxes(self.boxes, CORNERS, self.size, [left, top, right, bottom])

    def crop(self, top: int, left: int, height: int, width: int) -> None:
        self._top, self._left = self._top + top, self._left + left
        self.boxes, (self.height, self.width) = F.crop_bounding_boxes(self.boxes, CORNERS, top, left, height, width)

    def flip(self) -> None:
        self._pixels = self.pixels.flip(-1)
        self.boxes = F.horizontal_flip_bounding_boxes(self.boxes, CORNERS, self.size)

    def resize(self, size: tuple[int, int], how: Resampling) -> None:
        pixels = self.pixels if how.antialias else F.to_dtype_image(self.pixels, torch.float32, scale=True)
        self._pixels = F.resize_image(pixels, list(size), INTERPOLATIONS[how.resample], antialias=how.antialias)
        self.boxes, (self.height, self.width) = F.resize_bounding_boxes(self.boxes, self.size, list(size), format=CORNERS)

    def recolour(self, changes: Sequence[tuple[int, float]]) -> None:
        """Brightness, contrast and saturation times factors, in the order given, see `recoloured`."""
        self._pixels = recoloured(F.to_dtype_image(self.pixels, torch.uint8, scale=True), changes)

    def _cut(self) -> Tensor:
        """The part of `_pixels` that is seen, with what lies outside of it in one colour."""
        inside = [
            (max(0, start), min(start + length, whole))
            for start, length, whole in zip((self._top, self._left), self.size, self._pixels.shape[-2:], strict=True)
        ]
        (top, bottom), (left, right) = inside
        seen = self._pixels[:, top:bottom, left:right]
        if seen.shape[-2:] == self.size:
            return seen
        row = torch.tensor(self._colour, dtype=torch.uint8).repeat(self.width)
        canvas = row.repeat(self.height).view(self.height, self.width, 3).permute(2, 0, 1)
        if top < bottom and left < right:
            canvas[:, top - self._top : bottom - self._top, left - self._left : right - self._left] = seen
        return canvas


class Step(Protocol):
    """One change of a view."""

    def __call__(self, view: View) -> None: ...


def chance(probability: float) -> bool:
    """Whether something of this probability happens, as torchvision draws it."""
    return bool(torch.rand(1) < probability)


@dataclass(frozen=True)
class Resize:
    """To one size; the aspect ratio is not kept."""

    size: tuple[int, int]
    how: Resampling

    def __call__(self, view: View) -> None:
        view.resize(self.size, self.how)


@dataclass(frozen=True)
class ShorterSide:
    """Resize to one of some lengths of the shorter side, the longer one at most `longest`; the aspect ratio is kept."""

    sides: tuple[int, ...]
    longest: int | None
    how: Resampling

    def __call__(self, view: View) -> None:
        view.resize(resized(view.size, self.sides[int(torch.randint(len(self.sides), ()))], self.longest), self.how)


@dataclass(frozen=True)
class Flip:
    """Left and right exchanged in half of the views."""

    def __call__(self, view: View) -> None:
        if chance(0.5):
            view.flip()


@dataclass(frozen=True)
class SizeCrop:
    """A crop whose height and width are drawn between two lengths, anywhere in the image; a shorter image side stays whole."""

    smallest: int
    largest: int

    def __call__(self, view: View) -> None:
        (top, height), (left, width) = (self._span(side) for side in view.size)
        view.crop(top, left, height, width)

    def _span(self, side: int) -> tuple[int, int]:
        low, high = min(self.smallest, side), min(self.largest, side)
        length = int(torch.randint(low, high + 1, ()))
        return int(torch.randint(side - length + 1, ())), length


@dataclass(frozen=True)
class Sometimes:
    """Steps that are taken in a part of the views."""

    probability: float
    steps: tuple[Step, ...]

    def __call__(self, view: View) -> None:
        if chance(self.probability):
            for step in self.steps:
                step(view)


@dataclass(frozen=True)
class ZoomOut:
    """In half of the views the image somewhere on a canvas of one colour, whose sides are up to `largest` times its own."""

    colour: tuple[int, ...]
    largest: float

    def __call__(self, view: View) -> None:
        if not chance(0.5):
            return
        height, width = view.size
        (factor,) = 1 + torch.rand(1).numpy() * (self.largest - 1)
        wide, high = int(width * factor), int(height * factor)
        places = torch.rand(2).numpy()
        left, top = int((wide - width) * places[0]), int((high - height) * places[1])
        view.pad(left, top, wide - (left + width), high - (top + height), self.colour)


@dataclass(frozen=True)
class IoUCrop:
    """A crop around at least one box, whose overlap with it is at least a drawn one (SSD; torchvision's `RandomIoUCrop`). Boxes
    with their centre outside of it are emptied; an image without boxes stays whole."""

    scales: tuple[float, float] = (0.3, 1.0)
    aspect_ratios: tuple[float, float] = (0.5, 2.0)
    overlaps: tuple[float, ...] = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)  # 1 leaves the image whole
    trials: int = 40

    def __call__(self, view: View) -> None:
        if not len(view.boxes):
            return
        boxes = view.boxes.numpy()
        while True:
            least = self.overlaps[int(torch.randint(len(self.overlaps), (1,)))]
            if least >= 1:
                return
            for _ in range(self.trials):
                window = self._window(*view.size)
                if window is None:
                    continue
                top, left, height, width = window
                kept = self._kept(boxes, (left, top, left + width, top + height), least)
                if kept is not None:
                    view.crop(*window)
                    view.boxes[torch.from_numpy(~kept)] = 0
                    return

    def _window(self, height: int, width: int) -> tuple[int, int, int, int] | None:
        """(top, left, height, width), or None where the proportions or the area drawn are none."""
        low, high = self.scales
        sides = low + (high - low) * torch.rand(2).numpy()
        wide, tall = int(width * sides[0]), int(height * sides[1])
        if not (tall and self.aspect_ratios[0] <= wide / tall <= self.aspect_ratios[1]):
            return None
        places = torch.rand(2).numpy()
        left, top = int((width - wide) * places[0]), int((height - tall) * places[1])
        return (top, left, tall, wide) if wide else None

    @staticmethod
    def _kept(boxes: np.ndarray, window: tuple[int, int, int, int], least: float) -> np.ndarray | None:
        """(n,) bool, which boxes have their centre in the window; None where none has, or none overlaps enough."""
        left, top, right, bottom = window
        x, y = 0.5 * (boxes[:, 0] + boxes[:, 2]), 0.5 * (boxes[:, 1] + boxes[:, 3])
        kept = (left < x) & (x < right) & (top < y) & (y < bottom)
        if not kept.any():
            return None
        inside = boxes[kept]
        corners = np.array(window, boxes.dtype)
        sides = np.clip(np.minimum(inside[:, 2:], corners[2:]) - np.maximum(inside[:, :2], corners[:2]), 0, None)
        common = sides[:, 0] * sides[:, 1]
        areas = (inside[:, 2] - inside[:, 0]) * (inside[:, 3] - inside[:, 1])
        with np.errstate(invalid="ignore"):  # a box without an area
            overlap = (common / (areas + (right - left) * (bottom - top) - common)).max()
        return None if overlap < least else kept


@dataclass(frozen=True)
class Jitter:
    """Brightness, contrast and saturation, each times a factor drawn from 1 - x to 1 + x, in a drawn order."""

    brightness: float
    contrast: float
    saturation: float

    def __call__(self, view: View) -> None:
        drawn = ColorJitter(self.brightness, self.contrast, self.saturation).make_params([])
        factors = drawn["brightness_factor"], drawn["contrast_factor"], drawn["saturation_factor"]
        view.recolour([(change, factors[change]) for change in drawn["fn_idx"].tolist() if change < len(factors)])


def recoloured(pixels: Tensor, changes: Sequence[tuple[int, float]]) -> Tensor:
    """(3, h, w) uint8 -> the same after torchvision's `adjust_...`, one change after the other, in one buffer.

    A change rounds its result down to whole numbers, as a conversion to uint8 between the changes would.
    """
    values = torch.empty(pixels.shape).copy_(pixels)
    for change, factor in changes:
        if change == BRIGHTNESS:
            values.mul_(factor)
        else:
            grey = values[0].mul(0.2989).add_(values[1], alpha=0.587).add_(values[2], alpha=0.114).floor_()
            other = grey.mean() if change == CONTRAST else grey
            values.mul_(factor).add_(other, alpha=1.0 - factor)
        values.clamp_(0, 255).floor_()
    return values.to(torch.uint8)


def resized(size: tuple[int, int], shorter: int, longest: int | None) -> tuple[int, int]:
    """(height, width) scaled so that the shorter side is `shorter`, or less where the longer side would exceed `longest`.

    Rounded as transformers' image processors do.

    >>> resized((480, 640), 800, 1333), resized((100, 400), 800, 1333)
    ((800, 1066), (333, 1333))
    """
    short, long = min(size), max(size)
    side: float = shorter
    if longest is not None and long / short * shorter > longest:
        side = longest * short / long
    scaled = max(1, round(side)), max(1, int(side * long / short))
    return scaled if size[0] <= size[1] else scaled[::-1]
