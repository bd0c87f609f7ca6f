"""Deformable DETR: plain, with box refinement, and with queries that its encoder proposes."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from leandetr.detectors.backbones import Backbone
from leandetr.detectors.families.family import SAMPLING, DecoderRun, Family, Rows, boxes_averaged_once, inverse_sigmoid
from leandetr.detectors.families.initialise import rare_classes, unmoved_boxes, xavier_matrices
from leandetr.structures import DetectionModel, Queries, Target


class DeformableDetr(Family):
    """Deformable DETR: every layer answers offsets from the reference points that entered it."""

    source = "https://github.com/fundamentalvision/Deformable-DETR"
    arguments: ClassVar[dict[str, str]] = {**Family.arguments, "reference": "reference_points"}
    stages = 3
    encoder_parts = ("input_proj", "level_embed", "encoder")
    output_projection = "output_proj"
    class_layers: ClassVar[Mapping[str, str]] = {"*class_embed*": "class head"}
    box_layers: ClassVar[Mapping[str, str]] = {"*bbox_embed*": "box head", "*reference_points*": "reference points"}
    delicate_layers: ClassVar[Mapping[str, str]] = {**SAMPLING, "*pos_trans*": "takes position embeddings of boxes"}
    slow_layers = ("reference_points", "sampling_offsets")

    def of(self, config: PreTrainedConfig) -> Family:
        return TWO_STAGE if config.two_stage else self

    def proposal_strides(self, plain: PreTrainedConfig, backbone: Backbone, values: Mapping[str, Any]) -> list[float] | None:
        """Levels beyond the backbone's halve its coarsest one."""
        if not values.get("two_stage"):
            return None
        extra = values.get("num_feature_levels", plain.num_feature_levels) - len(backbone.strides)
        return [*backbone.strides, *(backbone.strides[-1] * 2**level for level in range(1, extra + 1))]

    def counted(self, values: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
        if not values.get("two_stage"):
            return values
        count = overrides.get("two_stage_num_proposals", values["num_queries"])
        return values | {"num_queries": count, "two_stage_num_proposals": count}

    def class_rows(self, config: PreTrainedConfig) -> dict[str, Rows]:
        return {"*class_embed.*": Rows.CLASSES}

    @torch.no_grad()
    def initialise(self, model: DetectionModel) -> None:
        trunk, proposed = model.model, model.config.two_stage
        xavier_matrices(trunk.encoder, trunk.decoder, *((trunk.enc_output, trunk.pos_trans) if proposed else ()))
        if not proposed:
            nn.init.normal_(trunk.query_position_embeddings.weight)
        rare_classes(model.class_embed)
        unmoved_boxes(model.bbox_embed)
        if not proposed:  # width and height; where boxes are refined, of the first layer alone
            for head in model.bbox_embed[:1] if model.config.with_box_refine else model.bbox_embed:
                nn.init.constant_(head.layers[-1].bias[2:], -2.0)

    def queries_of_rows(self, model: DetectionModel, rows: Tensor, own: Queries) -> Queries:
        """A row is position and content."""
        position, content = rows.chunk(2, -1)
        return Queries(content, position, model.model.reference_points(position).sigmoid())

    def layers(self, model: DetectionModel, run: DecoderRun) -> tuple[Tensor, Tensor, Tensor]:
        hidden = run.output.intermediate_hidden_states.transpose(0, 1)
        entered = [run.call["reference_points"], *run.output.intermediate_reference_points.transpose(0, 1)[:-1]]
        logits, boxes = [], []
        for layer, (state, reference) in enumerate(zip(hidden, entered, strict=True)):
            raw, reference = model.bbox_embed[layer](state), inverse_sigmoid(reference)
            raw = torch.cat([raw[..., :2] + reference, raw[..., 2:]], -1) if reference.shape[-1] == 2 else raw + reference
            logits.append(model.class_embed[layer](state))
            boxes.append(raw.sigmoid())
        return torch.stack(logits), torch.stack(boxes), hidden


class TwoStageDeformableDetr(DeformableDetr):
    """Deformable DETR whose queries are the encoder's best proposals: one box a cell, of which the class head's first column
    says whether an object is there."""

    queries_from_encoder = True
    queries_are_boxes = True

    def class_rows(self, config: PreTrainedConfig) -> dict[str, Rows]:
        """The head after those of the decoder's layers is the encoder's."""
        return {f"*class_embed.{config.decoder_layers}": Rows.OBJECTNESS, **super().class_rows(config)}

    def query_counts(self, config: PreTrainedConfig, count: int) -> dict[str, int]:
        return {"num_queries": count, "two_stage_num_proposals": count}

    def queries_of_boxes(self, model: DetectionModel, boxes: Tensor, own: Queries) -> Queries:
        """As the model makes them of the proposals that it has chosen."""
        trunk = model.model
        both = trunk.pos_trans_norm(trunk.pos_trans(trunk.get_proposal_pos_embed(inverse_sigmoid(boxes))))
        position, content = both.chunk(2, -1)
        return Queries(content, position, boxes)

    def weight_before(self, key: str, old: PreTrainedConfig, new: PreTrainedConfig) -> str:
        return re.sub(rf"(_embed\.){new.decoder_layers}\.", rf"\g<1>{old.decoder_layers}.", key)

    def loss(self, model: DetectionModel, answer: Any, logits: Tensor, boxes: Tensor, labels: Sequence[Target]) -> Tensor:
        """transformers leaves the proposals out, and nothing else teaches their heads (Deformable DETR, appendix A.4): the same
        matching and losses on all cells, every object being of class 0."""
        config = copy.copy(model.config)
        config.auxiliary_loss = False
        objects = [target | {"class_labels": torch.zeros_like(target["class_labels"])} for target in labels]
        proposals = answer.enc_outputs_class, objects, logits.device, answer.enc_outputs_coord_logits.sigmoid()
        with boxes_averaged_once():
            of_encoder = model.loss_function(*proposals, config)[0]
        return super().loss(model, answer, logits, boxes, labels) + of_encoder


TWO_STAGE = TwoStageDeformableDetr()
FAMILIES = {"deformable_detr": DeformableDetr()}
