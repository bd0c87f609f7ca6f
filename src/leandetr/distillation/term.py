"""What a distillation method is to the `Distiller`: a loss term over two detectors' outputs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Self, cast

from torch import Tensor, nn

from leandetr.detectors.detector import Detector
from leandetr.structures import Batch, DetectorOutput


class Term(nn.Module):
    """One distillation loss; a method is a list of weighted terms.

    Keyword-only arguments of the constructor and of `prepare` are its options in a recipe.

    Attributes:
        name: what recipes, logs and errors call it.
        needs: the fields of the teacher's `DetectorOutput` that it reads, of `hidden` and `attended` the last layer alone; a
            term may ask for less once it knows its options.
        detection: the weight of the student's own detection loss beside it.
        detections_suffice: it can also learn from a teacher that gives nothing else (see `predictions.py`); its `teacher` is
            then None, and they are in the batch's labels.
    """

    name: ClassVar[str]
    needs: frozenset[str]
    detection: ClassVar[float] = 1.0
    detections_suffice: ClassVar[bool] = False

    @classmethod
    def build(cls, student: Detector, *teacher: Any, **options: Any) -> Self:
        """The term for these two detectors, whose widths, heads and families it may have to bridge; neither is changed.

        A term takes one teacher, a `Detector` (or None where detections suffice), and its options by name.

        Raises UserError where it cannot.
        """
        raise NotImplementedError

    @classmethod
    def prepare(cls, student: Detector) -> None:
        """Give a student what the term trains inside it, such as further queries; one that has it keeps it.

        `build_terms` does it. Low-bit training does it before the student's grids are calibrated.

        Raises UserError where the student cannot have it.
        """

    def forward(self, student: DetectorOutput, teacher: DetectorOutput, batch: Batch) -> dict[str, Tensor]:
        """Two answers to one batch, the teacher's classes in the student's order -> named scalars, whose sum is the loss.

        Gradients reach the student and the term's own parameters, never the teacher.
        """
        raise NotImplementedError

    def check(self, answers: Iterable[tuple[DetectorOutput | None, Batch]]) -> None:
        """Reads as many of the teacher's answers and their batches as it takes to see that there is something to learn.

        Raises UserError where there is nothing.
        """


def total(parts: Iterable[Tensor]) -> Tensor:
    """The sum of at least one."""
    return cast(Tensor, sum(parts))
