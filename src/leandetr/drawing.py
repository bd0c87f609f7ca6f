"""Boxes drawn on a photograph: what reports and predictions show."""

import warnings
from collections.abc import Sequence

from PIL import Image

from leandetr.structures import Detections

with warnings.catch_warnings():  # it warns that it draws with NumPy where OpenCV is not installed, which is all that is needed
    warnings.simplefilter("ignore", UserWarning)
    import supervision as sv

# Eight hues that stay apart for colour-blind readers, light enough for black text; classes beyond the eighth start over.
COLOURS = ("#e69f00", "#4c9be8", "#e8743b", "#19b28a", "#dd8fbb", "#9fd8f7", "#f0e442", "#b58ae0")


def above(detections: Detections, threshold: float) -> Detections:
    """The detections that score at least `threshold`."""
    keep = detections.scores >= threshold
    return Detections(detections.scores[keep], detections.labels[keep], detections.boxes[keep])


def draw(
    image: Image.Image, detections: Detections, class_names: Sequence[str], longest: int, scores: bool = False
) -> Image.Image:
    """A copy whose longer side has `longest` pixels, with a box an object, coloured by class, the best on top; the label says
    the score too where `scores`."""
    scale = longest / max(image.size)
    canvas = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)
    if not len(detections.labels):
        return canvas
    order = detections.scores.argsort(stable=True)
    values, classes, corners = (part[order] for part in (detections.scores, detections.labels, detections.boxes))
    labels = classes.tolist()
    boxes = sv.Detections(xyxy=(corners.detach().float() * scale).cpu().numpy(), class_id=classes.cpu().numpy().astype(int))
    palette = sv.ColorPalette.from_hex(list(COLOURS))
    canvas = sv.BoxAnnotator(color=palette, thickness=2).annotate(canvas, boxes)
    texts = [class_names[label] for label in labels]
    if scores:
        texts = [f"{text} {score:.2f}" for text, score in zip(texts, values.tolist())]
    annotator = sv.LabelAnnotator(color=palette, text_color=sv.Color.BLACK, text_scale=0.35, text_padding=2)
    return annotator.annotate(canvas, boxes, labels=texts)
