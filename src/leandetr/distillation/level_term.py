"""What terms that compare feature maps alone have in common."""

from __future__ import annotations

from typing import ClassVar, Self

from leandetr.detectors.detector import Detector
from leandetr.distillation.levels import Levels
from leandetr.distillation.term import Term


class LevelTerm(Term):
    """A term of the two detectors' feature maps.

    Args:
        levels: brings them together, with a convolution of `kernel_size` where the widths differ.
    """

    needs = frozenset({"features"})
    kernel_size: ClassVar[int] = 1

    def __init__(self, levels: Levels) -> None:
        super().__init__()
        self.levels = levels

    @classmethod
    def build(cls, student: Detector, teacher: Detector) -> Self:
        return cls(Levels.build(student, teacher, cls.kernel_size))
