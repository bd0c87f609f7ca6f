"""Distribution rectification distillation (Q-DETR, Xu et al., CVPR 2023, eq. 2.32 to 2.35).

Low bits distort what a query gathers from the image. Inside the student its queries are aligned, see
`detectors/alignment.py`. From outside, those of its queries that are near an object imitate a teacher's:

    G_i = max_j GIoU(b_i^GT, b_j^S)                                    the best of all N student queries for object i
    j is kept if GIoU(b_i^GT, b_j^S) > tau * G_i for an object i       foreground-aware query matching
    k(j) = argmax_k 2 GIoU(b_j^S, b_k^T) - 5 |b_j^S - b_k^T|_1         its partner; not one to one, the class does not count
    L = mean over the kept j of || phi(D_j^S) - D_k(j)^T ||_2 / u

with D the co-attended features of the last decoder layer: what the attention to the image gathered, before its output
projection (where attention is deformable, the sum of the sampled values). phi is linear where the widths differ, else nothing.
It has no bias, which would move all queries alike, and could alone make up most of a small D.

Where the paper is silent: u is the root mean square of the teacher's || D^T ||_2 in the batch, because families differ in the
size of D as they do in that of features; so 1 is what a student loses that gathers nothing. An object whose best GIoU is not
positive keeps no query, because the inequality would turn around. tau = 0 keeps all queries of an image with objects (the
paper's full imitation), tau = 1 none (no distillation). No decoder is run again.
"""

from __future__ import annotations

import logging
from typing import Self, cast

import torch
from torch import Tensor, nn

from leandetr.boxes import pairwise_giou, pairwise_l1
from leandetr.detectors.alignment import align_queries, alignment_of, quantized_attention
from leandetr.detectors.detector import Detector
from leandetr.distillation.levels import width_of
from leandetr.distillation.term import Term
from leandetr.errors import UserError
from leandetr.losses import PaddedTargets, mean_over_ranks, pad_targets
from leandetr.structures import Batch, DetectorOutput

GIOU_WEIGHT, L1_WEIGHT = 2.0, 5.0
logger = logging.getLogger(__name__)


class DistributionRectification(Term):
    """Foreground queries imitate a teacher's co-attended features, in a student whose queries are aligned.

    The rows of Q-DETR's table 2.2 are: baseline alignment="none", tau=1; +DA tau=1; +FQM alignment="none"; both, the default.

    The paper aligns the queries of the attention to the image. Deformable attention rounds no query: its offsets and weights
    come from layers that stay float. There, "auto" aligns the decoder's self-attention, whose operands are rounded.

    Args:
        student: the detector to train, after `prepare`.
        teacher: any float detector with co-attended features, the student before its quantization included.
        tau: in [0, 1], how near to the best a query must be, relative to the best GIoU for the object.

    Raises:
        UserError: a tau outside [0, 1], or a decoder without attention to the image.
    """

    name = "drd"
    needs = frozenset({"boxes", "attended"})

    def __init__(self, student: Detector, teacher: Detector, *, tau: float = 0.6) -> None:
        super().__init__()
        if not 0 <= tau <= 1:
            raise UserError(f"tau of the drd term is {tau}; give a number from 0 to 1")
        for detector in (student, teacher):
            if any(detector.family.cross_attention(layer) is None for layer in detector.model.model.decoder.layers):
                raise UserError(
                    f"the drd term needs co-attended features, and the decoder of {detector.config.model_type} has no "
                    "attention to the image; choose another method or another family"
                )
        self.tau = tau
        needless = width_of(student) == width_of(teacher)
        self.adapter = nn.Identity() if needless else nn.Linear(width_of(student), width_of(teacher), bias=False)

    @classmethod
    def build(cls, student: Detector, teacher: Detector, **options: float) -> Self:
        return cls(student, teacher, **options)

    @classmethod
    def prepare(cls, student: Detector, *, alignment: str = "auto") -> None:
        """Align the queries of the student's "cross" or "self" attentions, of "both" or "none", with scale 1 and shift 0.
        "auto" is "cross", or "self" where the attention to the image is deformable.

        Low-bit training, whose student was trained without, chooses both from its own queries then, see `fit_alignment`.
        """
        quantized, present = quantized_attention(student.model), alignment_of(student.config)
        if alignment == "auto":
            alignment = present or quantized
        elif (alignment, quantized, present) == ("cross", "self", None):
            logger.warning(
                "drd.alignment is cross, and this %s samples by layers that stay float: no quantizer sees the aligned queries "
                "unless an override rounds those layers; self aligns what is rounded",
                student.config.model_type,
            )
        if alignment != "none":
            align_queries(student.model, alignment)

    def forward(self, student: DetectorOutput, teacher: DetectorOutput, batch: Batch) -> dict[str, Tensor]:
        """Boxes and co-attended features of both -> {"attended": scalar}, the mean distance of the pairs in units of the
        teacher's features, 0 without any."""
        kept = foreground_queries(student.boxes[-1], pad_targets(batch["labels"]), self.tau)
        images, queries = kept.nonzero(as_tuple=True)
        matched = partners(student.boxes[-1], teacher.boxes[-1])[images, queries]
        own, taught = cast(Tensor, student.attended), cast(Tensor, teacher.attended)  # both families have them
        given = self.adapter(own[-1][images, queries])
        unit = taught[-1].square().sum(-1).mean().sqrt().clamp(min=1e-6)
        distances = torch.linalg.vector_norm(given - taught[-1][images, matched], dim=-1) / unit
        return {"attended": distances.sum() / mean_over_ranks(len(images), distances.device)}


@torch.no_grad()
def foreground_queries(boxes: Tensor, objects: PaddedTargets, tau: float) -> Tensor:
    """A student's boxes (B, N, 4), the objects of the B images -> (B, N) bool, the queries that are kept."""
    sizes = torch.tensor(objects.sizes, device=boxes.device)
    there = torch.arange(objects.boxes.shape[1], device=boxes.device) < sizes[:, None]
    if tau == 0:
        return (sizes > 0)[:, None].expand(boxes.shape[:2])
    overlap = pairwise_giou(boxes.float(), objects.boxes).nan_to_num(-1.0)  # (B, N, M); a box without area overlaps nothing
    best = overlap.amax(1, keepdim=True)
    return ((overlap > tau * best) & (best > 0) & there[:, None]).any(-1)


@torch.no_grad()
def partners(student: Tensor, teacher: Tensor) -> Tensor:
    """Boxes (B, N, 4) and (B, M, 4) in (cx, cy, w, h) -> (B, N) int64, the teacher's query for every query of the student."""
    student, teacher = student.float(), teacher.float()
    overlap = pairwise_giou(student, teacher).nan_to_num(-1.0)
    return (GIOU_WEIGHT * overlap - L1_WEIGHT * pairwise_l1(student, teacher)).argmax(-1)
