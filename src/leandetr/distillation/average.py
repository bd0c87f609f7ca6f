"""The student's own moving average as its teacher, which costs no second training (mean teacher; OD-DETR, IJCAI 2024)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from leandetr.detectors.detector import Detector
from leandetr.distillation.teacher import DetectorTeacher
from leandetr.structures import DetectorOutput

#: what a student that is to learn from its average names as the teacher
NAME = "self"
#: fraction of a training in which the average is not yet trusted wholly
RISING = 0.1


def names_average(source: str | Path) -> bool:
    """Whether a student's own average is meant, and no file of that name."""
    return str(source) == NAME and not Path(NAME).exists()


class AverageTeacher(DetectorTeacher):
    """A copy of the student that has the averaged weights of the moment at every answer.

    Before a training follows, it is the student as it was when copied: with all queries and adapters that terms train inside of
    it, see `Term.prepare`. What it says counts `trust` = exp(-5 (1 - t)^2), t the part of `RISING` that is over, at most 1.
    """

    changes = True

    def __init__(self, student: Detector) -> None:
        super().__init__(copy.deepcopy(student), student)
        self.source = "the student's own average"
        self._weights: Callable[[], Mapping[str, Tensor]] | None = None
        self._progress: Callable[[], float] = lambda: 0.0

    @property
    def trust(self) -> float:
        return math.exp(-5 * (1 - min(1.0, self._progress() / RISING)) ** 2)

    def follow(self, weights: Callable[[], Mapping[str, Tensor]], progress: Callable[[], float]) -> None:
        self._weights, self._progress = weights, progress

    @torch.no_grad()
    def answer(
        self, pixel_values: Tensor, pixel_mask: Tensor, asked: Collection[str] = (), padded: bool = True
    ) -> DetectorOutput:
        if self._weights is not None:
            average = self._weights()
            own = dict(self.detector.named_parameters()) | dict(self.detector.named_buffers())
            for name, tensor in own.items():
                tensor.copy_(average[name])
        return super().answer(pixel_values, pixel_mask, asked, padded)
