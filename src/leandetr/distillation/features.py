"""Target-aware feature distillation (DETRDistill, Chang et al., ICCV 2023, section 4.2, eq. 5-8).

The teacher's queries say where in its feature map F_T (H x W x d) the knowledge is. With psi_i = F_T Q_i, the response of
every cell to query i, and q_i, how well query i finds its object,

    L = sum_i q_i / (M d H W) * || psi_i (F_T - phi(F_S)) ||^2            (8)
    q_i = c_i^gamma * IoU(b_i, b_i^GT)^(1 - gamma)                        (7)

where c_i is the teacher's score for the class of the object that its own assignment gives to query i; a query without an
object has q_i = 0. Treating all queries alike, L = 1 / (d H W) * || psi (F_T - phi(F_S)) ||^2 with psi = 1/M sum_i psi_i
(5, 6), is the paper's failing ablation.

Where the paper is silent: Q are the states after the teacher's last decoder layer; features are in units of the teacher's root
mean square; psi_i is divided by its largest absolute value in the image, and the mask that the queries make together by its
mean over the batch, so that L is a weighted mean of squares in place of 1/(M H W) of a sum. Otherwise its size is an accident
of the family: with lambda 20, raw products of normalised states are some ten times the detection loss, and responses of at most
1 that all M queries share a hundredth of it.
Padding does not count; several levels are averaged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self, cast

import torch
from torch import Tensor
from torchvision.ops import box_iou

from leandetr.boxes import to_corners
from leandetr.detectors.detector import Detector
from leandetr.distillation.levels import Level, Levels, pair_levels
from leandetr.distillation.term import Term
from leandetr.errors import UserError, unknown
from leandetr.heads import Head
from leandetr.losses import HungarianMatcher, pad_targets
from leandetr.losses.matcher import Assignment
from leandetr.structures import Batch, DetectorOutput

MASKS = ("quality", "uniform")
RESPONSES = ("normalised", "raw")
QUERIES = ("states", "embeddings", "boxes", "attention")


class TargetAwareFeatures(Term):
    """Imitates the teacher's features where its good queries look.

    Args:
        levels: brings the two detectors' feature maps together.
        teacher_head: what the columns of its logits mean.
        matcher: how the teacher's queries are matched with the objects.
        mask: "quality" (eq. 7 and 8) or "uniform" (eq. 5 and 6).
        response: the mask "normalised" to a mean of 1, of responses of at most 1 in absolute value, or "raw": eq. 8 as it
            is written, on the features' own scale.
        floor: the least that a cell counts, in units of the normalised mask's mean. 0 leaves cells where no good query looks
            unconstrained, among them the background from which an RT-DETR must not pick its queries.
        queries: Q are the "states" after the teacher's last decoder layer, or the "embeddings" that enter its decoder. "boxes",
            ours: no product, psi_i is how much of a cell the teacher's box i covers. "attention", ours: psi_i is how much its
            last layer's attention to the image weighs a cell for query i. Deformable attention never trains the product of
            queries and features, which then hardly knows the objects.
        gamma: in [0, 1], how much the score counts against the IoU in eq. 7.

    Raises:
        UserError: an unknown choice, or a gamma outside [0, 1].
    """

    name = "features"
    needs = frozenset({"logits", "boxes", "hidden", "features", "queries"})

    def __init__(
        self,
        levels: Levels,
        teacher_head: Head,
        matcher: HungarianMatcher,
        *,
        mask: str = "quality",
        response: str = "normalised",
        floor: float = 0.0,
        queries: str = "states",
        gamma: float = 0.5,
    ) -> None:
        super().__init__()
        for option, value, known in (("mask", mask, MASKS), ("response", response, RESPONSES), ("queries", queries, QUERIES)):
            if value not in known:
                raise unknown(f"{option} of the features term", value, known)
        if not 0 <= gamma <= 1:
            raise UserError(f"gamma of the features term is {gamma}; give a number from 0 to 1")
        if floor < 0 or (floor and response == "raw"):
            raise UserError(f"floor of the features term is {floor}; give 0 or more, with the normalised response")
        self.levels = levels
        self.teacher_head, self.matcher, self.floor = teacher_head, matcher, floor
        self.mask, self.response, self.queries, self.gamma = mask, response, queries, gamma
        unread: dict[str, set[str]] = {"states": {"queries"}, "embeddings": set(), "boxes": {"queries", "hidden"}}
        self.needs = self.needs - unread.get(queries, {"queries", "hidden"})
        if queries == "attention":
            self.needs = self.needs | {"cross_attention"}

    @classmethod
    def build(cls, student: Detector, teacher: Detector, **options: Any) -> Self:
        if options.get("queries") == "attention":
            check_looks(cls.name, teacher)
        matcher = HungarianMatcher.from_config(teacher.config, teacher.head)
        return cls(Levels.build(student, teacher), teacher.head, matcher, **options)

    def forward(self, student: DetectorOutput, teacher: DetectorOutput, batch: Batch) -> dict[str, Tensor]:
        """Features of both and the teacher's last decoder layer -> {"imitation": scalar}."""
        with torch.no_grad():
            queries, quality = self.chosen_queries(teacher, batch)
        count = teacher.boxes.shape[2]
        levels = self.levels(student, teacher, batch)
        if self.response == "raw":
            levels = [level.raw() for level in levels]
        of_levels = [queries] * len(levels)
        if self.queries == "attention":
            of_levels = [rows for _, rows in pair_levels(student.features, maps_of(queries, teacher))]
        losses = [self.imitation(level, own, quality, count) for level, own in zip(levels, of_levels, strict=True)]
        return {"imitation": torch.stack(losses).mean()}

    def imitation(self, level: Level, queries: Tensor, quality: Tensor, count: int) -> Tensor:
        """One level, queries (B, G, D), boxes (B, G, 4) or attention (B, G, h, w) that make the mask, their quality (B, G),
        M = count -> scalar."""
        with torch.no_grad():
            weight = self.weights(self.responses(level, queries), quality, count)
        squares = (level.teacher - level.student).square().mean(1)
        if self.response == "normalised":
            if self.floor:
                valid = level.valid[:, 0]
                mean = weight.sum() / valid.sum()
                weight = weight.clamp(min=self.floor * mean) * valid if mean > 0 else valid
            return (weight * squares).sum() / weight.sum().clamp(min=1e-6)
        return ((weight * squares).sum((1, 2)) / level.valid.sum((1, 2, 3))).mean()

    def weights(self, psi: Tensor, quality: Tensor, count: int) -> Tensor:
        """What the squared differences of a cell count in eq. 8 (or 5 and 6): psi (B, G, h, w), quality (B, G) -> (B, h, w)."""
        return psi.mean(1).square() if self.mask == "uniform" else torch.einsum("bg,bghw->bhw", quality, psi**2) / count

    def responses(self, level: Level, queries: Tensor) -> Tensor:
        """psi: (B, G, D) queries, (B, G, 4) boxes or (B, G, h, w) attention -> (B, G, h, w), zero in padding."""
        if self.queries == "attention":
            psi = queries * level.valid
        elif self.queries == "boxes":
            psi = covered(queries, level) * level.valid
        else:
            psi = torch.einsum("bgd,bdhw->bghw", queries, level.teacher) * level.valid
        return psi / psi.abs().amax((2, 3), keepdim=True).clamp(min=1e-6) if self.response == "normalised" else psi

    def chosen_queries(self, teacher: DetectorOutput, batch: Batch) -> tuple[Tensor, Tensor]:
        """The teacher's queries (B, G, D), boxes (B, G, 4) or attention (B, G, S) that make the mask, and their quality (B, G)
        by eq. 7.

        By quality: for every object, padded to the batch's largest count G, the query that the teacher assigns to it; other
        queries have quality 0. Uniform: all M, and the quality is not used.
        """
        sources: dict[str, Callable[[], Tensor]] = {
            "states": lambda: teacher.hidden[-1],
            "embeddings": lambda: embeddings(teacher),
            "boxes": lambda: teacher.boxes[-1],
            "attention": lambda: cast(Tensor, teacher.cross_attention)[-1],  # it was asked for
        }
        queries = sources[self.queries]()
        if self.mask == "uniform":
            return queries, queries.new_ones(queries.shape[:2])
        pairs, of_pairs = self.assigned(teacher, batch)
        shape = len(queries), max(len(target["boxes"]) for target in batch["labels"])
        chosen, quality = queries.new_zeros(*shape, queries.shape[-1]), queries.new_zeros(shape)
        chosen[pairs.images, pairs.targets] = queries[pairs.images, pairs.queries]
        quality[pairs.images, pairs.targets] = of_pairs
        return chosen, quality

    def assigned(self, teacher: DetectorOutput, batch: Batch) -> tuple[Assignment, Tensor]:
        """The teacher's own assignment of its last layer's P pairs, and their quality (P,) in [0, 1] by eq. 7."""
        objects = pad_targets(batch["labels"])
        pairs = self.matcher(teacher.logits[-1:], teacher.boxes[-1:], objects)
        classes = pairs.of_targets(objects.classes)[:, None]
        logits = pairs.of_queries(teacher.logits[-1:]).float()
        scores = self.teacher_head.probabilities(logits).gather(1, classes)[:, 0]
        found = to_corners(pairs.of_queries(teacher.boxes[-1:]).float())
        overlap = box_iou(found[:, None], to_corners(pairs.of_targets(objects.boxes))[:, None]).flatten().nan_to_num()
        return pairs, scores**self.gamma * overlap ** (1 - self.gamma)


def check_looks(term: str, detector: Detector) -> None:
    """Raises UserError, which names the term, for a detector whose decoder has no attention to the image."""
    if detector.family.cross_attention(detector.model.model.decoder.layers[0]) is None:
        raise UserError(
            f"the {term} term is to read where a decoder looks, and that of {detector.config.model_type} has no attention to "
            "the image; take another family, or an option that leaves attention out"
        )


def maps_of(rows: Tensor, output: DetectorOutput) -> list[Tensor]:
    """(B, G, S) attention of an output's memory -> (B, G, h, w) a level."""
    shapes = [level.shape[-2:] for level in output.features]
    return [level.unflatten(-1, shape) for level, shape in zip(rows.split([h * w for h, w in shapes], -1), shapes, strict=True)]


def embeddings(teacher: DetectorOutput) -> Tensor:
    """(B, M, D): the learned queries, which some families keep as positions and others as content."""
    entering = (teacher.queries.position, teacher.queries.content)
    return next(q for q in entering if q is not None and q.shape == teacher.hidden.shape[1:]).float()


def covered(boxes: Tensor, level: Level) -> Tensor:
    """(B, G, 4) in (cx, cy, w, h) -> (B, G, h, w) in [0, 1], the share of each cell that a box covers."""
    x0, y0, x1, y1 = (to_corners(boxes) * level.extent.repeat(1, 2)[:, None]).unbind(-1)

    def along(first: Tensor, last: Tensor, cells: int) -> Tensor:
        start = torch.arange(cells, device=boxes.device)
        return (torch.minimum(last[..., None], start + 1) - torch.maximum(first[..., None], start)).clamp(0, 1)

    height, width = level.teacher.shape[-2:]
    return along(y0, y1, height)[..., :, None] * along(x0, x1, width)[..., None, :]
