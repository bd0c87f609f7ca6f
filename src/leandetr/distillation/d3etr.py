"""Decoder distillation (after D3ETR, Chen et al., IJCAI 2024): what both decoders answer, and where they look.

Two groups of queries pass the student's decoder, each in a call of its own: the student's own queries, which a Hungarian
matching pairs with the teacher's at every layer (adaptive), and the teacher's queries, which need none (fixed). For the P pairs
of a layer, with weights w_i, the teacher's highest class probability,

    L = sum over layers of 1 / sum w_i * sum w_i [ class + box + self + cross ]

class and box are KD-DETR's, see `kd_detr.py`. With rows A of the attention of a query, heads averaged,

    self    KL(A_T || A_S) over the paired queries: rows and columns are permuted alike, columns without a partner are left out
            and rows divided by what is left; rows of the teacher that lose more than half get weight 0
    cross   KL(A_T || A_S) over the cells; the teacher's map is averaged to the size of the student's
            where attention is deformable, and a map is zero nearly everywhere:
            sum over x and y of |mu_S - mu_T| / side of the teacher's box + |log v_S - log v_T|, mean and variance of the place

Known to us are the paper's abstract and a figure: two matchings, and that predictions, self- and cross-attention are distilled.
The equations are our reading. The teacher's layers teach by depth, as in `logits`; fixed predictions are the last layer's, as
KD-DETR's. AdaMixer looks at the image without attention, and has no cross part.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from leandetr.detectors.attention_maps import normalised
from leandetr.detectors.detector import Detector
from leandetr.distillation.features import maps_of
from leandetr.distillation.kd_detr import differences
from leandetr.distillation.levels import pair_levels
from leandetr.distillation.logits import SoftClasses, teaching_stages
from leandetr.distillation.query_map import QueryMap
from leandetr.distillation.term import Term
from leandetr.errors import UserError
from leandetr.heads import Head
from leandetr.losses import assign, box_cost
from leandetr.structures import Batch, DetectorOutput

LEAST = 1e-8  # of a probability
LEAST_VARIANCE = 1e-6  # of a place relative to the image: a thousandth of a side
MAPS = frozenset({"self_attention", "cross_attention"})


class Pairs(NamedTuple):
    """student, teacher: (L, B, P) queries that belong together. weights: (L, B, P)."""

    student: Tensor
    teacher: Tensor
    weights: Tensor


class DecoderDistillation(Term):
    """Makes a decoder answer and look as another does.

    Args:
        student: decodes the fixed group; it is not registered here, the distiller has it.
        head: of both detectors.
        queries: brings the teacher's queries to the student; None without the fixed group.
        maps: which attention both have, of `MAPS`.
        deformable: whether either looks at sampled points alone.
        fixed, adaptive: the two groups.
        attention: whether they learn where to look.

    Raises:
        UserError: no group at all.
    """

    name = "d3etr"
    needs = frozenset({"logits", "boxes", "queries"}) | MAPS

    def __init__(
        self,
        student: Detector,
        head: Head,
        queries: QueryMap | None,
        maps: frozenset[str],
        deformable: bool,
        *,
        fixed: bool = True,
        adaptive: bool = True,
        attention: bool = True,
    ) -> None:
        super().__init__()
        if not (fixed or adaptive):
            raise UserError("fixed and adaptive of the d3etr term are both off; switch one on")
        self._student = (student,)  # a tuple hides it from the module's parameters
        self.queries, self.adaptive, self.deformable = queries, adaptive, deformable
        self.head, self.classes = head, SoftClasses(head, head)
        self.maps = maps if attention else frozenset[str]()
        self.needs = frozenset({"logits", "boxes"}) | self.maps | ({"queries"} if fixed else frozenset())

    @classmethod
    def build(cls, student: Detector, teacher: Detector, **options: bool) -> Self:
        """Raises UserError for heads of two kinds, and, with `fixed`, where the detectors mean different things by a query."""
        if student.head is not teacher.head:
            raise UserError(
                f"the d3etr term compares class distributions of one kind, and a {student.config.model_type} student's are not "
                f"those of a {teacher.config.model_type}; take a teacher of the same family, or the method logits"
            )
        looks = [detector.family.cross_attention(detector.model.model.decoder.layers[0]) for detector in (student, teacher)]
        maps = MAPS if all(look is not None for look in looks) else MAPS - {"cross_attention"}
        deformable = any(hasattr(look, "sampling_offsets") for look in looks)
        queries = QueryMap.build(cls.name, student, teacher) if options.get("fixed", True) else None
        return cls(student, student.head, queries, maps, deformable, **options)

    def forward(self, student: DetectorOutput, teacher: DetectorOutput, batch: Batch) -> dict[str, Tensor]:
        """Both decoders' answers and maps -> "class", "box", "self" and "cross" of "fixed_" and "adaptive_", summed over the
        layers."""
        (detector,) = self._student
        parts: dict[str, Tensor] = {}
        if self.queries is not None:
            group = detector.decode(self.queries(teacher.queries, student), student.memory, self.maps)
            stages = teaching_stages(len(group.logits), len(teacher.logits))
            weights = self.weights(teacher.logits[-1:].expand(len(stages), -1, -1, -1))
            every = torch.arange(weights.shape[2], device=weights.device).expand(weights.shape)
            last = [len(teacher.logits) - 1] * len(stages)
            parts |= self.losses("fixed", group, teacher, Pairs(every, every, weights), last, stages)
        if self.adaptive:
            stages = teaching_stages(len(student.logits), len(teacher.logits))
            pairs = self.match(student, teacher.logits[stages], teacher.boxes[stages])
            parts |= self.losses("adaptive", student, teacher, pairs, stages, stages)
        return parts

    def weights(self, logits: Tensor) -> Tensor:
        """(..., C) -> (...)."""
        return self.head.probabilities(logits.float()).amax(-1)

    @torch.no_grad()
    def match(self, student: DetectorOutput, logits: Tensor, boxes: Tensor) -> Pairs:
        """The student's queries with those of the teacher's stages (L, B, M, ...), by class and box."""
        costs = self.classes.pairwise_losses(student.logits, self.classes.targets(logits)) + box_cost(student.boxes, boxes)
        found = assign(costs, [boxes.shape[2]] * boxes.shape[1])
        queries, targets = (index.view(*boxes.shape[:2], -1) for index in (found.queries, found.targets))
        return Pairs(queries, targets, self.weights(logits).gather(2, targets))

    def losses(
        self, group: str, student: DetectorOutput, teacher: DetectorOutput, pairs: Pairs, answers: list[int], looks: list[int]
    ) -> dict[str, Tensor]:
        """answers, looks: the teacher's layers that teach each of the L layers what to answer and where to look."""
        taught = [rows_of(values[answers], pairs.teacher) for values in (teacher.logits, teacher.boxes)]
        own = [rows_of(values, pairs.student) for values in (student.logits, student.boxes)]
        divergence, box = differences(*own, *taught)
        parts = {"class": weighted(divergence, pairs.weights), "box": weighted(box, pairs.weights)}
        if student.self_attention is not None and teacher.self_attention is not None:
            given, wanted = among(student.self_attention, pairs.student), among(teacher.self_attention[looks], pairs.teacher)
            kept = wanted.sum(-1) >= 0.5
            parts["self"] = weighted(divergences(normalised(wanted), normalised(given)), pairs.weights * kept)
        if student.cross_attention is not None and teacher.cross_attention is not None:
            given, wanted = (
                rows_of(student.cross_attention, pairs.student),
                rows_of(teacher.cross_attention[looks], pairs.teacher),
            )
            apart = self.moved(student, given, teacher, wanted, taught[1]) if self.deformable else None
            apart = divergences(*on_one_grid(student, given, teacher, wanted)) if apart is None else apart
            parts["cross"] = weighted(apart, pairs.weights)
        return {f"{group}_{name}": value for name, value in parts.items()}

    def moved(self, student: DetectorOutput, given: Tensor, teacher: DetectorOutput, wanted: Tensor, boxes: Tensor) -> Tensor:
        """Attention (L, B, P, S) and (L, B, P, S_T), the teacher's boxes (L, B, P, 4) -> (L, B, P), how far places and spreads
        are apart."""
        place, spread = moments(given, student)
        taught_place, taught_spread = moments(wanted, teacher)
        far = (place - taught_place).abs() / boxes[..., 2:].clamp(min=0.01)
        return (far + (spread.log() - taught_spread.log()).abs()).sum(-1)


def rows_of(values: Tensor, queries: Tensor) -> Tensor:
    """(L, B, N, X), (L, B, P) -> (L, B, P, X)."""
    return values.gather(2, queries[..., None].expand(-1, -1, -1, values.shape[-1]))


def among(maps: Tensor, queries: Tensor) -> Tensor:
    """(L, B, N, N), (L, B, P) -> (L, B, P, P), rows and columns of these queries in this order."""
    rows = rows_of(maps, queries)
    return rows.gather(3, queries[:, :, None].expand(-1, -1, rows.shape[2], -1))


def divergences(wanted: Tensor, given: Tensor) -> Tensor:
    """KL of distributions (..., X) -> (...)."""
    return F.kl_div(given.clamp(min=LEAST).log(), wanted, reduction="none").sum(-1)


def weighted(values: Tensor, weights: Tensor) -> Tensor:
    """(L, B, P), (L, B, P) -> the sum over layers of weighted means."""
    return ((weights * values).sum((1, 2)) / weights.sum((1, 2)).clamp(min=1e-6)).sum()


def moments(rows: Tensor, output: DetectorOutput) -> tuple[Tensor, Tensor]:
    """Attention (..., S) -> mean and variance (..., 2) of the place, (x, y) relative to the map."""
    centres = []
    for level in output.features:
        y, x = ((torch.arange(side, device=rows.device) + 0.5) / side for side in level.shape[-2:])
        centres.append(torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).flatten(0, 1))
    places = torch.cat(centres)
    mean = rows @ places
    return mean, (rows @ places.square() - mean.square()).clamp(min=LEAST_VARIANCE)


def on_one_grid(student: DetectorOutput, given: Tensor, teacher: DetectorOutput, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Attention (L, B, P, S_T) of the teacher and (L, B, P, S) of the student -> both on the student's cells."""
    shape = given.shape[:3]
    pairs = pair_levels(maps_of(given.flatten(0, 1), student), maps_of(wanted.flatten(0, 1), teacher))
    brought = [
        F.adaptive_avg_pool2d(taught, (own.shape[2], own.shape[3])) * taught[0, 0].numel() / own[0, 0].numel()
        for own, taught in pairs
    ]
    own_rows, rows = (torch.cat([level.flatten(2) for level in levels], -1) for levels in ([own for own, _ in pairs], brought))
    return normalised(rows.view(*shape, -1)), normalised(own_rows.view(*shape, -1))
