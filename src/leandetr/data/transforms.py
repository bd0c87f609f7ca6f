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

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from leandetr.errors import unknown
from leandetr.structures import Preprocessing

AUGMENTATIONS = ("none", "flip", "detr", "ssd")

DETR_SIDE = 800  # the shorter side for which DETR's lengths were chosen
DETR_SIDES = range(480, 801, 32)
DETR_SIDES_BEFORE_CROP = (400, 500, 600)
DETR_CROP = (384, 600)

#: `Preprocessing.resample` -> torchvision's mode, as transformers' image processors take it
INTERPOLATIONS = {
    "nearest": v2.InterpolationMode.NEAREST_EXACT,
    "bilinear": v2.InterpolationMode.BILINEAR,
    "bicubic": v2.InterpolationMode.BICUBIC,
}


class DetectionTransform:
    """`transform(image, boxes, labels, seed)` -> pixels, boxes, labels; made by `train_transform` and `eval_transform`."""

    def __init__(self, preprocessing: Preprocessing, steps: Sequence[v2.Transform]) -> None:
        self.preprocessing = preprocessing
        self.steps = v2.Compose(steps)

    def __call__(self, image: Image.Image, boxes: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """One view of an image.

        Args:
            image: RGB.
            boxes: (n, 4) float (x0, y0, x1, y1) in pixels of `image`; parts outside of it are cut off.
            labels: (n,) of any type.
            seed: every random choice follows from it; any integer of 64 bits.

        Returns:
            pixels (3, h, w) float32, normalised; boxes (m, 4) float32 (cx, cy, w, h) relative to (w, h), in [0, 1]; the
            m <= n labels of the boxes of which at least one pixel in each direction is left.
        """
        boxes = F.clamp_bounding_boxes(tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(image.height, image.width)))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the accelerators too
            pixels, boxes = self.steps(F.to_image(image), boxes)
        pixels = F.to_dtype(pixels, torch.float32, scale=True)
        pixels = F.normalize(pixels, list(self.preprocessing.mean), list(self.preprocessing.std))
        boxes, left = F.sanitize_bounding_boxes(F.clamp_bounding_boxes(boxes), min_size=1)
        height, width = pixels.shape[-2:]
        centred = F.convert_bounding_box_format(boxes, new_format="CXCYWH").as_subclass(Tensor)
        relative = centred.to(torch.float32) / torch.tensor([width, height, width, height], dtype=torch.float32)
        return pixels.as_subclass(Tensor), relative, labels[left]


def eval_transform(preprocessing: Preprocessing) -> DetectionTransform:
    """What a model's own image processor does; the seed has no effect."""
    return DetectionTransform(preprocessing, [_resize(preprocessing)])


def untouched_transform(preprocessing: Preprocessing) -> DetectionTransform:
    """The photograph as it is, 0 to 255 at its own size, for what does the preprocessing by itself."""
    return DetectionTransform(replace(preprocessing, mean=(0.0,) * 3, std=(1 / 255,) * 3), [v2.Identity()])


def train_transform(preprocessing: Preprocessing, augment: str = "flip") -> DetectionTransform:
    """A transform with one of `AUGMENTATIONS`. Raises UserError for another name."""
    resize = _resize(preprocessing)
    flip = v2.RandomHorizontalFlip()
    match augment:
        case "none":
            return DetectionTransform(preprocessing, [resize])
        case "flip":
            return DetectionTransform(preprocessing, [flip, resize])
        case "detr":
            return DetectionTransform(preprocessing, [flip, *_detr(preprocessing)])
        case "ssd":
            padding = {tv_tensors.Image: [round(255 * mean) for mean in preprocessing.mean]}
            zoom = v2.RandomZoomOut(fill=padding, side_range=(1.0, 2.0), p=0.5)
            crop = v2.RandomApply([IoUCrop()], p=0.8)
            jitter = v2.ColorJitter(brightness=0.125, contrast=0.3, saturation=0.3)  # hue would cost more than all the rest
            return DetectionTransform(preprocessing, [zoom, crop, flip, resize, jitter])
    raise unknown("augmentation", augment, AUGMENTATIONS)


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


class ResizeShorterSide(v2.Transform):
    """Resize to one of some lengths of the shorter side, the longer one at most `longest`; the aspect ratio is kept. `how`: of
    interpolation, as torchvision's functional resize takes it."""

    def __init__(self, sides: Sequence[int], longest: int | None, **how: Any) -> None:
        super().__init__()
        self.sides, self.longest, self.how = list(sides), longest, how

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        side = self.sides[int(torch.randint(len(self.sides), ()))]
        return {"size": list(resized(v2.query_size(flat_inputs), side, self.longest))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return self._call_kernel(F.resize, inpt, size=params["size"], **self.how)


class RandomSizeCrop(v2.Transform):
    """A crop whose height and width are drawn between two lengths, anywhere in the image; a shorter image side stays whole."""

    def __init__(self, smallest: int, largest: int) -> None:
        super().__init__()
        self.smallest, self.largest = smallest, largest

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        (top, height), (left, width) = (self._span(side) for side in v2.query_size(flat_inputs))
        return {"top": top, "left": left, "height": height, "width": width}

    def _span(self, side: int) -> tuple[int, int]:
        low, high = min(self.smallest, side), min(self.largest, side)
        length = int(torch.randint(low, high + 1, ()))
        return int(torch.randint(side - length + 1, ())), length

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return self._call_kernel(F.crop, inpt, **params)


class IoUCrop(v2.RandomIoUCrop):
    """torchvision's crop around at least one box; an image without boxes, in which it would search in vain, stays whole."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return super().make_params(flat_inputs) if len(v2.get_bounding_boxes(flat_inputs)) else {}


def _resize(preprocessing: Preprocessing) -> v2.Transform:
    if preprocessing.size is not None:
        resize = v2.Resize(list(preprocessing.size), **_how(preprocessing))
    else:
        resize = ResizeShorterSide([_shorter_side(preprocessing)], preprocessing.longest_edge, **_how(preprocessing))
    if preprocessing.antialias:
        return resize
    return v2.Compose([v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True), resize])


def _how(preprocessing: Preprocessing) -> dict[str, Any]:
    return {"interpolation": INTERPOLATIONS[preprocessing.resample], "antialias": preprocessing.antialias}


def _shorter_side(preprocessing: Preprocessing) -> int:
    if preprocessing.size is not None:
        return min(preprocessing.size)
    assert preprocessing.shortest_edge is not None  # it has one of the two
    return preprocessing.shortest_edge


def _detr(preprocessing: Preprocessing) -> list[v2.Transform]:
    side = _shorter_side(preprocessing)

    def scaled(lengths: Sequence[int]) -> list[int]:
        return [max(1, round(length * side / DETR_SIDE)) for length in lengths]

    how = _how(preprocessing)
    crop = v2.Compose([ResizeShorterSide(scaled(DETR_SIDES_BEFORE_CROP), None, **how), RandomSizeCrop(*scaled(DETR_CROP))])
    varied = ResizeShorterSide(scaled(DETR_SIDES), preprocessing.longest_edge, **how)
    return [v2.RandomApply([crop], p=0.5), varied if preprocessing.size is None else _resize(preprocessing)]
