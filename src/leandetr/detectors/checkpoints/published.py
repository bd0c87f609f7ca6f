"""A detector from nothing but a file that the papers' authors published: its keys and shapes say which family's layout it has,
its sizes and its number of classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from transformers import AutoModelForObjectDetection

from leandetr.detectors.checkpoints.key_maps import fill, layouts
from leandetr.detectors.checkpoints.published_classes import published_classes
from leandetr.detectors.checkpoints.state_dict import read_checkpoint
from leandetr.detectors.detector import Detector
from leandetr.detectors.families.layout import Layout
from leandetr.errors import UserError, reason

SUFFIXES = (".pth", ".pt", ".safetensors")


def layout_of(state: Mapping[str, Tensor]) -> Layout | None:
    """The layout of a published state dict; None where its keys are of none."""
    known = dict.fromkeys(layouts().values())
    return next((layout for layout in reversed(known) if layout.key in state), None)  # descendants have their elders' keys


def load_published(file: Path) -> Detector:
    """The detector in a published `.pth` or `.safetensors`, in evaluation mode; its classes are `published_classes`.

    Raises:
        UserError: the file cannot be read or would run code; its keys are of no layout; keys are missing, unexpected or
            of other shapes (names the first three); classes that it does not name.
    """
    state = read_checkpoint(file)
    layout = layout_of(state)
    if layout is None:
        known = ", ".join(dict.fromkeys(layout.name for layout in layouts().values()))
        raise UserError(
            f"{file} is not a checkpoint of {known} as published (its first keys: {', '.join(list(state)[:3])}); give a folder "
            "that save_pretrained wrote"
        )
    try:
        config = layout.config(state, Path(file).stem)
        model = AutoModelForObjectDetection.from_config(config)
    except (KeyError, ValueError, RuntimeError) as error:
        fault = f"it has no {error}" if isinstance(error, KeyError) else reason(error)
        raise UserError(f"{file}: no {layout.name} can be built from its keys ({fault})") from error
    fill(model, state, str(file))
    detector = Detector(model, layout.preprocessing, published_classes(model.config.num_labels, file))
    return detector.eval()
