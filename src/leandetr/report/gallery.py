"""Validation images with their boxes: the ground truth and each variant's answer, drawn alike."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from PIL import Image

from leandetr.drawing import above, draw
from leandetr.structures import Detections

LONGEST = 440  # pixels of a drawn image's longer side: small images are enlarged so that labels can be read


class Picture(NamedTuple):
    """One validation image. title: its file's name. image: RGB, in the frame of the boxes. truth: the ground truth.
    predictions: a row's name -> its detections."""

    title: str
    image: Image.Image
    truth: Detections
    predictions: Mapping[str, Detections]


class Panel(NamedTuple):
    """One drawn image: what it shows, how many boxes are on it, and the image as a `data:` address."""

    title: str
    boxes: int
    source: str


def panels(picture: Picture, class_names: Sequence[str], threshold: float) -> list[Panel]:
    """The ground truth first, then every variant's boxes that score at least `threshold`."""
    image, truth = picture.image, picture.truth
    drawn = [Panel("ground truth", len(truth.labels), data_address(draw(image, truth, class_names, LONGEST)))]
    for name, detections in picture.predictions.items():
        kept = above(detections, threshold)
        drawn.append(Panel(name, len(kept.labels), data_address(draw(image, kept, class_names, LONGEST, scores=True))))
    return drawn


def data_address(image: Image.Image) -> str:
    """A picture as the address of itself, WebP, for a page that needs no other file."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
