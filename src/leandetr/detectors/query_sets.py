"""Two sets of queries in one decoder: object queries, and distillation queries beside them (SwinDETR).

They attend to each other in every decoder layer. The distillation queries are further rows of the model's own table of learned
queries, after the object queries; so checkpoints, exports and plain transformers have them without any code of ours. In the
configuration, `num_queries` counts both sets, `distillation_queries` the second, and `answering_queries` says whose answers are
the model's: both sets always run, because dropping one would change the other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from leandetr.detectors.families.registry import family_of
from leandetr.errors import UserError, unknown
from leandetr.structures import DetectionModel

SETS = ("object", "distillation", "both")


def has_distillation_queries(config: PreTrainedConfig) -> bool:
    """Whether queries that learn from a teacher stand beside those that are trained on boxes."""
    return getattr(config, "distillation_queries", 0) > 0


def queries_of(config: PreTrainedConfig, which: str) -> slice:
    """Where a set of `SETS` is among the model's queries."""
    first = config.num_queries - getattr(config, "distillation_queries", 0)
    return {"object": slice(0, first), "distillation": slice(first, None), "both": slice(None)}[which]


@torch.no_grad()
def add_distillation_queries(model: DetectionModel, count: int | None = None) -> None:
    """Give a detector's model distillation queries, drawn as its family draws queries; one that has them keeps them.

    Args:
        model: of a family with learned queries.
        count: how many; by default as many as object queries.

    Raises:
        UserError: no learned queries, a count below 1, or another count than the detector already has.
    """
    config = model.config
    if has_distillation_queries(config):
        if count not in (None, config.distillation_queries):
            raise UserError(
                f"the student already has {config.distillation_queries} distillation queries; do not ask for {count}"
            )
        return
    family = family_of(config)
    table = family.learned_queries(model)
    if table is None or family.query_table is None:
        raise UserError(
            f"this {config.model_type} student has no table of learned queries, a row a query, to which distillation queries "
            "could be added; take a detr, conditional_detr or deformable_detr that is not two-stage"
        )
    objects = table.weight
    count = len(objects) if count is None else count
    if count < 1:
        raise UserError(f"{count} distillation queries are too few; ask for at least 1")
    both = nn.Embedding(len(objects) + count, objects.shape[1]).to(objects)  # unit normal, as queries begin in every family
    both.weight[: len(objects)] = objects
    setattr(model.model, family.query_table, both)
    config.num_queries, config.distillation_queries = len(both.weight), count
    config.answering_queries = "object"


def answer_with(config: PreTrainedConfig, which: str) -> None:
    """Let a set of `SETS` give a detector's predictions from now on, in exports and after saving too.

    `config` is the model's own; "both" are ranked by score together.

    Raises:
        UserError: no such set, or a detector without distillation queries.
    """
    if which not in SETS:
        raise unknown("set of queries", which, SETS)
    if not has_distillation_queries(config):
        raise UserError(
            "the detector has object queries alone; leave the choice of a set to one that was distilled with hard-label or "
            "soft-label"
        )
    config.answering_queries = which


def keep_answers(model: DetectionModel, _arguments: Any, output: Any) -> Any:
    """Forward hook of a model: of its logits and pred_boxes (B, N, ...) only the answering set's are left."""
    config = model.config
    if has_distillation_queries(config) and output.logits.shape[1] == config.num_queries:
        chosen = queries_of(config, config.answering_queries)
        output.logits, output.pred_boxes = output.logits[:, chosen], output.pred_boxes[:, chosen]
    return output
