"""The detector that a spec describes: a new one, or a finished one made ready for other classes, images and query counts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from leandetr.detectors.checkpoints.load import load, load_whole
from leandetr.detectors.create import create
from leandetr.detectors.detector import Detector
from leandetr.detectors.names import MODELS
from leandetr.detectors.reconfigure import reconfigure, resize_images, resize_queries
from leandetr.detectors.reset_classifier import reset_classifier
from leandetr.detectors.spec import NewDetector
from leandetr.errors import UserError
from leandetr.structures import ClassMap


def build(new: NewDetector, class_map: ClassMap, say: Callable[[str], None] = lambda said: None) -> Detector:
    """For these classes, in evaluation mode where it is a finished one. The weights of a new model that are a whole detector of
    its family, and not for a backbone that was named, are that checkpoint: sizes and backbone are then the file's.

    say: takes a line about what a checkpoint keeps, what is new in it, and what it loses.

    Randomness comes from torch's global generator. Raises UserError for every fault of the spec and of what it names.
    """
    source = new.checkpoint or new.weights
    detector = load(new.checkpoint) if new.checkpoint is not None else _whole(new, say)
    if detector is None:
        if new.image_size is None:
            raise UserError(f"a new {new.model} needs a size: add --image-size HEIGHT WIDTH")
        counted = {} if new.queries is None else {"num_queries": new.queries}
        return create(str(new.model), class_map, new.image_size, new.backbone, new.weights, counted | new.set)
    if new.set:
        detector, weights = reconfigure(detector, new.set)
        if weights.selected or weights.new or weights.dropped:
            say(f"{source}: {weights}")
    known = detector.class_map
    change = reset_classifier(detector, class_map)
    if class_map.names != known.names:
        say(f"{source}: {change}")
    prepared = detector.preprocessing
    if new.image_size is not None and new.image_size not in (prepared.size, prepared.shortest_edge):
        detector = resize_images(detector, new.image_size)
    return detector if new.queries is None else resize_queries(detector, new.queries)


def _whole(new: NewDetector, say: Callable[[str], None]) -> Detector | None:
    """The detector that the weights of a new model are; None where they are no whole one of its family, or are for a backbone
    that was named."""
    file = Path(str(new.weights))
    if new.weights is None or new.backbone is not None or not file.is_file() or new.model not in MODELS:
        return None
    whole, own = load_whole(file), MODELS[new.model].model_type
    if whole is not None and whole.config.model_type != own:
        say(f"{file} is a {whole.config.model_type}, and the model a {own}: its backbone alone is taken")
        return None
    if whole is not None:
        say(f"{file} is a whole {own}, which is trained further; name its --backbone to take that alone")
    return whole
