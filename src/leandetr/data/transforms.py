"""From a photograph and its boxes to a model's input, with or without augmentation.

Augmentations by name; each ends in the resize that the model's `Preprocessing` asks for:

    none   nothing: the view that evaluation sees
    flip   a horizontal flip in half of the views
    detr   DETR's (Carion et al., ECCV 2020, section 4): flip; in half of the views resize, random crop, resize. Models with a
           free aspect ratio also vary the shorter side from 0.6 to 1 times its length. All of DETR's lengths, made for a
           shorter side of 800, are scaled to the model's.
    ssd    for models of a fixed size, after SSD (Liu et al., ECCV 2016) as RT-DETR uses it, in a mild form: zoom out up to
           2 times in half of the views, IoU-constrained crop in 0.8 of them, flip, colour jitter

Every random choice follows from the seed of the call, so a view can be made again at any time and in any process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from leandetr.data.views import (
    CORNERS,
    Flip,
    IoUCrop,
    Jitter,
    Resampling,
    Resize,
    ShorterSide,
    SizeCrop,
    Sometimes,
    Step,
    View,
    ZoomOut,
)
from leandetr.errors import unknown
from leandetr.structures import Preprocessing

AUGMENTATIONS = ("none", "flip", "detr", "ssd")

DETR_SIDE = 800  # the shorter side for which DETR's lengths were chosen
DETR_SIDES = range(480, 801, 32)
DETR_SIDES_BEFORE_CROP = (400, 500, 600)
DETR_CROP = (384, 600)


class DetectionTransform:
    """`transform(image, boxes, labels, seed)` -> pixels, boxes, labels; made by `train_transform` and `eval_transform`."""

    def __init__(self, preprocessing: Preprocessing, steps: Sequence[Step]) -> None:
        self.preprocessing = preprocessing
        self.steps = tuple(steps)

    def __call__(self, image: Tensor, boxes: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """One view of an image.

        Args:
            image: (3, h, w) uint8, RGB.
            boxes: (n, 4) float (x0, y0, x1, y1) in pixels of `image`; parts outside of it are cut off.
            labels: (n,) of any type.
            seed: every random choice follows from it; any integer of 64 bits.

        Returns:
            pixels (3, h, w), which `normalised` makes a model's input: uint8, or float32 in [0, 1] where the preprocessing does
            not antialias; boxes (m, 4) float32 (cx, cy, w, h) relative to (w, h), in [0, 1]; the m <= n labels of the boxes of
            which at least one pixel in each direction is left.
        """
        view = View(image, boxes)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the accelerators too
            for step in self.steps:
                step(view)
        height, width = view.size
        boxes = F.clamp_bounding_boxes(view.boxes, CORNERS, view.size, "soft")
        boxes, left = F.sanitize_bounding_boxes(boxes, CORNERS, view.size, min_size=1)
        centred = F.convert_bounding_box_format(boxes, CORNERS, "CXCYWH")
        relative = centred.to(torch.float32) / torch.tensor([width, height, width, height], dtype=torch.float32)
        return view.pixels, relative, labels[left]


def normalised(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """(..., 3, h, w) uint8, or float32 in [0, 1] -> float32, as the model takes it; on any device the same."""
    scaled = F.to_dtype_image(pixels, torch.float32, scale=True)
    return F.normalize_image(scaled, list(preprocessing.mean), list(preprocessing.std), inplace=True)


def eval_transform(preprocessing: Preprocessing) -> DetectionTransform:
    """What a model's own image processor does; the seed has no effect."""
    return DetectionTransform(preprocessing, [_resize(preprocessing)])


def untouched_transform(preprocessing: Preprocessing) -> DetectionTransform:
    """The photograph as it is, 0 to 255 at its own size, for what does the preprocessing by itself."""
    return DetectionTransform(replace(preprocessing, mean=(0.0,) * 3, std=(1 / 255,) * 3), [])


def train_transform(preprocessing: Preprocessing, augment: str = "flip") -> DetectionTransform:
    """A transform with one of `AUGMENTATIONS`. Raises UserError for another name."""
    resize = _resize(preprocessing)
    match augment:
        case "none":
            return DetectionTransform(preprocessing, [resize])
        case "flip":
            return DetectionTransform(preprocessing, [Flip(), resize])
        case "detr":
            return DetectionTransform(preprocessing, [Flip(), *_detr(preprocessing)])
        case "ssd":
            zoom = ZoomOut(tuple(round(255 * mean) for mean in preprocessing.mean), largest=2.0)
            crop = Sometimes(0.8, (IoUCrop(),))
            jitter = Jitter(brightness=0.125, contrast=0.3, saturation=0.3)  # hue would cost more than all the rest
            return DetectionTransform(preprocessing, [zoom, crop, Flip(), resize, jitter])
    raise unknown("augmentation", augment, AUGMENTATIONS)


def resampling(preprocessing: Preprocessing) -> Resampling:
    """How a preprocessing interpolates."""
    return Resampling(preprocessing.resample, preprocessing.antialias)


def _resize(preprocessing: Preprocessing) -> Step:
    if preprocessing.size is not None:
        height, width = preprocessing.size
        return Resize((height, width), resampling(preprocessing))
    return ShorterSide((_shorter_side(preprocessing),), preprocessing.longest_edge, resampling(preprocessing))


def _shorter_side(preprocessing: Preprocessing) -> int:
    if preprocessing.size is not None:
        return min(preprocessing.size)
    assert preprocessing.shortest_edge is not None  # it has one of the two
    return preprocessing.shortest_edge


def _detr(preprocessing: Preprocessing) -> list[Step]:
    side = _shorter_side(preprocessing)

    def scaled(lengths: Sequence[int]) -> tuple[int, ...]:
        return tuple(max(1, round(length * side / DETR_SIDE)) for length in lengths)

    how = resampling(preprocessing)
    crop = ShorterSide(scaled(DETR_SIDES_BEFORE_CROP), None, how), SizeCrop(*scaled(DETR_CROP))
    varied = ShorterSide(scaled(DETR_SIDES), preprocessing.longest_edge, how)
    return [Sometimes(0.5, crop), varied if preprocessing.size is None else _resize(preprocessing)]
