"""Validation images with their boxes: the ground truth and each variant's answer, drawn alike."""

import base64
import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageOps

from leandetr.errors import UserError
from leandetr.structures import Detections

with warnings.catch_warnings():  # it warns that it draws with NumPy where OpenCV is not installed, which is all that is needed
    warnings.simplefilter("ignore", UserWarning)
    import supervision as sv

# Eight hues that stay apart for colour-blind readers, light enough for black text; classes beyond the eighth start over.
COLOURS = ("#e69f00", "#4c9be8", "#e8743b", "#19b28a", "#dd8fbb", "#9fd8f7", "#f0e442", "#b58ae0")
LONGEST = 440  # pixels of a drawn image's longer side: small images are enlarged so that labels can be read


class Picture(NamedTuple):
    """One validation image. image: its file. truth: the ground truth. predictions: a row's name -> its detections."""

    image: Path
    truth: Detections
    predictions: Mapping[str, Detections]


class Panel(NamedTuple):
    """One drawn image: what it shows, how many boxes are on it, and the image as a `data:` address."""

    title: str
    boxes: int
    source: str


def panels(picture: Picture, class_names: Sequence[str], threshold: float) -> list[Panel]:
    """The ground truth first, then every variant's boxes that score at least `threshold`."""
    path, truth, predictions = picture
    image = open_image(path)
    drawn = [Panel("ground truth", len(truth.labels), data_address(draw(image, truth, class_names)))]
    for name, detections in predictions.items():
        keep = detections.scores >= threshold
        kept = Detections(detections.scores[keep], detections.labels[keep], detections.boxes[keep])
        drawn.append(Panel(name, len(kept.labels), data_address(draw(image, kept, class_names, scores=True))))
    return drawn


def open_image(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except OSError as error:
        raise UserError(f"cannot read the image {path}: {error}; replace it or take it out of the annotations") from error


def draw(image: Image.Image, detections: Detections, class_names: Sequence[str], scores: bool = False) -> Image.Image:
    """A resized copy with a box an object, coloured by class; the label says the score too where `scores`."""
    scale = LONGEST / max(image.size)
    canvas = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)
    if not len(detections.labels):
        return canvas
    labels = detections.labels.tolist()
    boxes = sv.Detections(
        xyxy=(detections.boxes.detach().float() * scale).cpu().numpy(), class_id=detections.labels.cpu().numpy().astype(int)
    )
    palette = sv.ColorPalette.from_hex(list(COLOURS))
    canvas = sv.BoxAnnotator(color=palette, thickness=2).annotate(canvas, boxes)
    texts = [class_names[label] for label in labels]
    if scores:
        texts = [f"{text} {score:.2f}" for text, score in zip(texts, detections.scores.tolist())]
    annotator = sv.LabelAnnotator(color=palette, text_color=sv.Color.BLACK, text_scale=0.35, text_padding=2)
    return annotator.annotate(canvas, boxes, labels=texts)


def data_address(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
