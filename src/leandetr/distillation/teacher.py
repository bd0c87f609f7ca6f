"""The teacher as a student's terms see it: the same augmented images, its own preprocessing, the student's order of classes.

A `Teacher` answers a student's batches. There are five kinds, and a cache of the first: `DetectorTeacher`, a detector with
queries and features; `AverageTeacher` (see `average.py`), the student's own average; `DetectionTeacher` and `Predictions` (see
`predictions.py`), which give detections and nothing else; `VisionTeacher` (see `vision.py`), which finds no objects;
`TeacherCache` (see `cache.py`), which has kept a detector's answers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import fields, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from leandetr.detectors.detector import Detector
from leandetr.distillation.frames import cut_out
from leandetr.errors import UserError
from leandetr.heads import Head
from leandetr.structures import Batch, ClassMap, Detections, DetectorOutput, Memory, Preprocessing, Proposals, Queries


class Teacher:
    """What answers a student's batches; not a module, so that it lands in no checkpoint, DDP or FSDP.

    Attributes:
        source: what it is called in errors.
        gives: the fields of a `DetectorOutput` that it can answer with; none where it gives detections alone.
        detector: whose answers they are; None where it gives detections alone.
        detects: whether it finds objects at all.
        lacks: why it gives no logits, where it could; "" where it does.
        detections: image id -> detections, for the training set to carry through its views; None where they come otherwise.
        changes: whether it answers otherwise from step to step.
        trust: in [0, 1], how much the terms that need it count at the moment.
    """

    source: str
    gives: frozenset[str] = frozenset()
    detects: bool = True
    lacks: str = ""
    detector: Detector | None = None
    detections: Mapping[int, Detections] | None = None
    changes: bool = False

    @property
    def trust(self) -> float:
        return 1.0

    def follow(self, weights: Callable[[], Mapping[str, Tensor]], progress: Callable[[], float]) -> None:
        """The student's averaged weights by name, and the part of the training that is over, for one that goes with it."""

    def __call__(self, batch: Batch, asked: Collection[str] = ()) -> tuple[DetectorOutput | None, Batch]:
        """The student's batch -> the answer in the student's order of classes, or None where the returned batch's labels have
        the teacher's detections instead; `asked` are those of `ASKED` that the answer is to have."""
        raise NotImplementedError


class DetectorTeacher(Teacher):
    """A trained detector.

    It runs in evaluation mode, without gradients and, on CUDA, in half precision. The answer is in single precision. (PyTorch's
    inference mode would forbid the losses to keep the answer for their backward pass.)

    Args:
        detector: the teacher.
        student: the detector whose batches it will see.

    Where the student has a class that the teacher lacks, it gives no logits; `lacks` says why, in a sentence.
    """

    gives = frozenset(field.name for field in fields(DetectorOutput)) - {"patches"}
    detector: Detector

    def __init__(self, detector: Detector, student: Detector) -> None:
        self.source = f"this {detector.config.model_type} teacher"
        # autocast would keep half-precision copies of weights that want gradients, and hand them to a call in another precision
        self.detector = detector.eval().requires_grad_(False)
        self.view = View(student.preprocessing, detector.preprocessing)
        try:
            self.columns = class_columns(student.class_map, detector.class_map, detector.head)
        except UserError as error:  # what needs no classes can still be learned
            self.columns, self.gives, self.lacks = None, self.gives - {"logits"}, str(error)

    def __call__(self, batch: Batch, asked: Collection[str] = ()) -> tuple[DetectorOutput, Batch]:
        return self.answer(batch["pixel_values"], batch["pixel_mask"], asked, batch.get("padded", True)), batch

    @torch.no_grad()
    def answer(
        self, pixel_values: Tensor, pixel_mask: Tensor, asked: Collection[str] = (), padded: bool = True
    ) -> DetectorOutput:
        """The student's pixel_values (B, 3, H, W) and pixel_mask (B, H, W) -> the teacher's output; `padded` is False
        where the mask is known to be 1 everywhere."""
        if next(self.detector.parameters()).device != pixel_values.device:
            self.detector.to(pixel_values.device)
        with torch.autocast("cuda", torch.float16, enabled=pixel_values.is_cuda):
            return self._for_student(self.detector(*self.view(pixel_values, pixel_mask), asked=asked, padded=padded))

    @torch.no_grad()
    def decode(self, queries: Queries, memory: Memory, asked: Collection[str] = ()) -> DetectorOutput:
        """The teacher's decoder on other queries, over the memory of an earlier answer."""
        with torch.autocast("cuda", torch.float16, enabled=memory.tokens.is_cuda):
            return self._for_student(self.detector.decode(queries, memory, asked))

    def _for_student(self, output: DetectorOutput) -> DetectorOutput:
        output = single_precision(output)
        if self.columns is None:
            return output
        proposed = output.proposals
        return replace(
            output,
            logits=output.logits[..., self.columns],
            proposals=None if proposed is None else replace(proposed, logits=proposed.logits[..., self.columns]),
        )


def class_columns(student: ClassMap, teacher: ClassMap, teacher_head: Head) -> list[int] | None:
    """The teacher's logit column of each of the student's classes, by name; None where the two already agree.

    A softmax head's no-object column stays the last. Classes that only the teacher knows are left out.
    """
    if student.names == teacher.names:
        return None
    missing = [name for name in student.names if name not in teacher.names]
    if missing:
        raise UserError(
            f"the teacher does not know {', '.join(missing)}: it has the classes {', '.join(teacher.names)}, and the student "
            f"has {', '.join(student.names)}; name a teacher that was trained on the student's classes (fine-tune this one by "
            "leandetr train --model TEACHER, or teacher.training in a recipe), or a method without classes, such as fitnet"
        )
    no_object = [len(teacher)] if teacher_head.has_no_object else []
    return [teacher.names.index(name) for name in student.names] + no_object


def single_precision(output: DetectorOutput) -> DetectorOutput:
    """With float32 logits, boxes, hidden states and features: losses lose too much in half precision."""
    return replace(
        output,
        logits=output.logits.float(),
        boxes=output.boxes.float(),
        hidden=output.hidden.float(),
        features=[level.float() for level in output.features],
        attended=None if output.attended is None else output.attended.float(),
        encoder_attended=[layer.float() for layer in output.encoder_attended],
        proposals=None
        if output.proposals is None
        else Proposals(output.proposals.logits.float(), output.proposals.boxes.float()),
        distillation=None if output.distillation is None else single_precision(output.distillation),
    )


class View:
    """From the student's pixel values to the teacher's: other normalisation, and another size where the teacher's is fixed.

    A teacher without a fixed size sees the batch at the student's size, padding included. One with a fixed size sees each image
    without its padding, stretched to that size, as it saw its training images; boxes relative to the image do not change.
    """

    def __init__(self, student: Preprocessing, teacher: Preprocessing) -> None:
        self.padded = student.size is None
        self.size = teacher.size
        mean, std = torch.tensor(teacher.mean), torch.tensor(teacher.std)
        # pixel = student_value * student_std + student_mean;  teacher_value = (pixel - mean) / std
        self.scale = (torch.tensor(student.std) / std)[:, None, None]
        self.shift = ((torch.tensor(student.mean) - mean) / std)[:, None, None]
        self.same = tuple(student.mean) == tuple(teacher.mean) and tuple(student.std) == tuple(teacher.std)

    def __call__(self, pixel_values: Tensor, pixel_mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) and (B, H, W) -> (B, 3, h, w) and (B, h, w)."""
        if self.size is not None and (self.padded or pixel_values.shape[-2:] != self.size):
            pixel_values = self._stretched(pixel_values, pixel_mask, self.size)
            pixel_mask = torch.ones_like(pixel_values[:, 0], dtype=pixel_mask.dtype)
        if not self.same:
            pixel_values = pixel_values * self.scale.to(pixel_values) + self.shift.to(pixel_values)
            pixel_values = pixel_values * pixel_mask[:, None]  # padding is zero after normalisation
        return pixel_values, pixel_mask

    def _stretched(self, pixel_values: Tensor, pixel_mask: Tensor, size: tuple[int, int]) -> Tensor:
        if not self.padded:
            return F.interpolate(pixel_values, size, mode="bilinear", align_corners=False, antialias=True)
        return cut_out(pixel_values, pixel_mask, size)
