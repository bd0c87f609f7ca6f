"""A student, its teacher, and the weighted terms between them: one module that a training loop treats as any other.

L = detection * L_detection + sum over terms of weight * term(student, teacher, batch)

where detection is 1, unless a term asks for less beside it.
"""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from leandetr.data.coco import CocoDataset
from leandetr.detectors.detector import Detector
from leandetr.distillation.cache import TeacherCache
from leandetr.distillation.teacher import DetectorTeacher, Teacher, single_precision
from leandetr.distillation.term import Term, total
from leandetr.errors import UserError
from leandetr.structures import ASKED, Batch, DetectorOutput, Target

#: In this many first steps the terms' gradients are measured: each costs one more backward pass through the decoder.
GRADIENT_STEPS = 10


@dataclass
class DistillerOutput:
    """loss: the scalar to minimise.

    logs: detached scalars on the loss's device. "detection" and "<term>/<part>" are values before weighting, "share/<term>" is
    a term's weighted part of the loss. In the first steps "gradient/<term>" is the norm of the weighted term's gradient at the
    student's memory (what the decoder attends to), through which every term's gradient passes on its way to the encoder and
    the backbone: a term that drowns the others or vanishes shows there, whatever its value.
    """

    loss: Tensor
    logs: dict[str, Tensor]


class Distiller(nn.Module):
    """Trains `student` on its own detection loss and on the terms. Its `state_dict` holds the student and the terms' adapters.

    Args:
        student: the detector to train.
        teacher: what to learn from. A detector stands for its `DetectorTeacher`: it is put in evaluation mode and never
            trained. The detections of `Predictions` the batches' labels must hold.
        terms: distillation terms and their weights, each >= 0.

    Raises:
        UserError: a negative weight; a student's class that the teacher lacks, where a term needs its logits.
    """

    def __init__(self, student: Detector, teacher: Detector | Teacher, terms: Iterable[tuple[Term, float]]) -> None:
        super().__init__()
        terms = list(terms)
        for term, weight in terms:
            if not weight >= 0:
                raise UserError(f"the weight of the distillation term {term.name!r} is {weight:g}; give 0 or more")
        self.student = student
        self.teacher: Teacher = DetectorTeacher(teacher, student) if isinstance(teacher, Detector) else teacher
        if self.teacher.lacks and any("logits" in term.needs for term, _ in terms):
            raise UserError(self.teacher.lacks)
        self.terms = nn.ModuleDict({term.name: term for term, _ in terms})
        self.weights = {term.name: weight for term, weight in terms}
        self.detection = min([1.0, *(term.detection for term, _ in terms)])
        self.asked = ASKED & frozenset[str]().union(*(term.needs for _, term in self._named_terms))
        self.steps = 0
        self.asks_teacher = any(term.needs for _, term in self._named_terms)

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor, labels: list[Target], padded: bool = True) -> DistillerOutput:
        """One batch of the student's augmented images, see `Batch` -> loss and logs.

        Raises UserError where the teacher does not have what a term needs.
        """
        student = single_precision(self.student(pixel_values, pixel_mask, labels, self.asked, padded))
        asked = Batch(pixel_values=pixel_values, pixel_mask=pixel_mask, labels=labels, padded=padded)
        teacher, batch = self._answer(asked)

        detection = cast(Tensor, student.loss)  # labels were given
        losses, logs = {"detection": self.detection * detection}, {"detection": detection}
        for name, term in self._named_terms:
            if teacher is not None:
                self._check_served(term, teacher)
            parts = term(student, teacher, batch)
            logs |= {f"{name}/{part}": value for part, value in parts.items()}
            losses[name] = self.weights[name] * (self.teacher.trust if term.needs else 1.0) * total(parts.values())
        loss = total(losses.values())
        logs |= {f"share/{name}": value / loss for name, value in losses.items()}
        if self.training and self.steps < GRADIENT_STEPS and torch.is_grad_enabled():
            logs |= {f"gradient/{name}": gradient_norm(value, student.memory.tokens) for name, value in losses.items()}
        self.steps += self.training
        return DistillerOutput(loss, {name: value.detach() for name, value in logs.items()})

    @property
    def _named_terms(self) -> ItemsView[str, Term]:
        return cast(ItemsView[str, Term], self.terms.items())

    def follow(self, weights: Callable[[], Mapping[str, Tensor]], progress: Callable[[], float]) -> None:
        """Tell the teacher of a training, see `Teacher.follow`."""
        self.teacher.follow(weights, progress)

    def check(self, batches: Iterable[Batch]) -> None:
        """Look for something to learn in the training images; stops at the first batch where every term has found it.

        Raises UserError where a term finds nothing in any of them.
        """
        for _, term in self._named_terms:
            term.check(self._answer(batch) for batch in batches)

    def remember(self, dataset: CocoDataset, folder: Path, epochs: int, **loading: int) -> None:
        """Have the teacher answer to the views of the training set that so many epochs show, before they begin, and read its
        answers from `folder` from then on. loading: batch size and workers, see `TeacherCache.fill`.

        Raises UserError where the answers cannot be kept, or the folder holds those of another teacher, data or size.
        """
        teacher = self.check_cached()
        needs = frozenset[str]().union(*(term.needs for _, term in self._named_terms))
        cache = TeacherCache(folder, DetectorTeacher(teacher, self.student), dataset, needs)
        cache.fill(epochs, **loading)
        self.teacher = cache

    def check_cached(self) -> Detector:
        """The detector that is the teacher. Raises UserError where what the terms ask of it cannot be kept."""
        if self.teacher.changes:
            raise UserError(f"the answers of {self.teacher.source} change in every step, and a cache keeps them; leave it out")
        if not self.teacher.detects:
            raise UserError(f"a cache is for a detector's answers, and {self.teacher.source} is none; leave out the cache")
        if self.teacher.detector is None:
            raise UserError(
                "the cache is for a saved detector's answers, and this teacher gives detections alone; leave out the cache, or "
                "write its detections to a file with `leandetr predict --format coco` and name that as the teacher"
            )
        for name, term in self._named_terms:
            if unkept := term.needs - TeacherCache.gives:
                raise UserError(
                    f"the {name} term asks the teacher's {', '.join(sorted(unkept))} in every step, which a cache "
                    "does not keep; leave out the cache" + ", or set general of kd-detr to false" * (name == "kd-detr")
                )
        return self.teacher.detector

    def _answer(self, batch: Batch) -> tuple[DetectorOutput | None, Batch]:
        """The teacher's, where a term needs anything of it."""
        return self.teacher(batch, self.asked) if self.asks_teacher else (None, batch)

    def _check_served(self, term: Term, output: DetectorOutput) -> None:
        for need in sorted(term.needs):
            value = getattr(output, need)
            if value is None or (isinstance(value, list) and not value):
                raise UserError(
                    f"the distillation term {term.name!r} needs the teacher's {need}, and {self.teacher.source} has none; "
                    "choose another method or another teacher"
                )


def gradient_norm(loss: Tensor, at: Tensor) -> Tensor:
    """The Euclidean norm of d loss / d at; 0 where `at` does not enter the loss or is frozen. The graph stays usable."""
    if not (loss.requires_grad and at.requires_grad):
        return torch.zeros_like(loss)
    (gradient,) = torch.autograd.grad(loss, at, retain_graph=True, allow_unused=True)
    return torch.zeros_like(loss) if gradient is None else gradient.float().norm()
