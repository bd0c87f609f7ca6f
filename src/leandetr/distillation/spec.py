"""How and from whom a student learns: the objects that Python, recipes and the command line hand to the verbs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from leandetr.checked import Checked


class Distillation(Checked):
    """How a student learns.

    Attributes:
        method: a name of `METHODS`, or several joined by commas.
        weights: term -> weight, in place of the method's own.
        options: term -> its options, `{"logits": {"stages": "last"}}`.
        cache: a folder that keeps the teacher's answers, so that later epochs and trainings need no teacher; the training's
            views must come again, see `Training.views`.
    """

    method: str = "logits"
    weights: dict[str, float] = Field(default_factory=dict)
    options: dict[str, dict[str, Any]] = Field(default_factory=dict)
    cache: Path | None = None


class Teaching(Distillation):
    """How a student learns, as in `Distillation`, and from whom.

    Attributes:
        teacher: a saved detector or hub id; `self`, the student's own moving average; for methods that learn from detections
            alone also a detector of torchvision (NAME or NAME:FILE, see `load_torchvision`), or a JSON in COCO's results format
            of the training images; for vision-alignment NAME:WEIGHTS of a vision model, see `load_vision_model`.
    """

    teacher: str | Path
