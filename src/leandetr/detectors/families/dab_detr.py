"""DAB-DETR."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from leandetr.detectors.families.family import DecoderRun, Family, Rows, inverse_sigmoid
from leandetr.detectors.families.initialise import rare_classes, unmoved_boxes, xavier_matrices
from leandetr.structures import DetectionModel, Queries


class DabDetr(Family):
    """DAB-DETR: a query's position is its anchor, four logits that every layer refines. The content queries enter the first
    layer as zeros: the weights that project them for its self-attention get no gradient."""

    source = "https://github.com/IDEA-Research/DAB-DETR"
    arguments: ClassVar[dict[str, str]] = {"content": "inputs_embeds", "position": "query_position_embeddings"}
    queries_are_boxes = True
    query_table = "query_refpoint_embeddings"
    output_projection = "output_proj"
    class_layers: ClassVar[Mapping[str, str]] = {"*class_embed*": "class head"}
    box_layers: ClassVar[Mapping[str, str]] = {
        "*bbox_predictor*": "box head",
        "*bbox_embed*": "box head",
        "*ref_point_head*": "reference points",
    }
    delicate_layers: ClassVar[Mapping[str, str]] = {
        "*query_scale*": "scales position embeddings",
        "*ref_anchor_head*": "sides of anchors",
    }

    def class_rows(self, config: PreTrainedConfig) -> dict[str, Rows]:
        return {"class_embed": Rows.CLASSES}

    @torch.no_grad()
    def initialise(self, model: DetectionModel) -> None:
        xavier_matrices(model.model.encoder, model.model.decoder)
        nn.init.normal_(model.model.query_refpoint_embeddings.weight)
        rare_classes([model.class_embed])
        unmoved_boxes([model.bbox_predictor])

    def learned_queries(self, model: DetectionModel) -> nn.Embedding | None:
        """None with patterns, which make several queries of a row."""
        return None if model.config.num_patterns else super().learned_queries(model)

    def queries_of_boxes(self, model: DetectionModel, boxes: Tensor, own: Queries) -> Queries:
        return Queries(content=boxes.new_zeros(*boxes.shape[:2], model.config.hidden_size), position=inverse_sigmoid(boxes))

    def self_attention(self, layer: Any) -> nn.Module:
        return layer.self_attn.self_attn

    def cross_attention(self, layer: Any) -> nn.Module:
        return layer.cross_attn.cross_attn

    def backbone(self, model: DetectionModel) -> nn.Module:
        return model.model.backbone.conv_encoder.model

    def layers(self, model: DetectionModel, run: DecoderRun) -> tuple[Tensor, Tensor, Tensor]:
        hidden, anchors = run.output.intermediate_hidden_states, run.output.reference_points
        boxes = (model.bbox_predictor(hidden) + inverse_sigmoid(anchors)).sigmoid()
        return model.class_embed(hidden), boxes, hidden


FAMILIES = {"dab-detr": DabDetr()}
