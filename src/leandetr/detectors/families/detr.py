"""DETR and Conditional DETR."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig

from leandetr.detectors.families.family import DecoderRun, Family, inverse_sigmoid
from leandetr.detectors.families.initialise import rare_classes, unmoved_boxes, xavier_matrices
from leandetr.detectors.families.layout import (
    LAYERS,
    PHOTOGRAPHS,
    Layout,
    Rules,
    State,
    sizes_of_transformer,
    timm_resnet,
)
from leandetr.heads import ClassLoss
from leandetr.structures import DetectionModel

RULES: Rules = (
    (r"^backbone\.0\.body\.", "model.backbone.model."),
    (r"^transformer\.decoder\.norm\.", "model.decoder.layernorm."),
    (r"^transformer\.", "model."),
    (r"^input_proj\.", "model.input_projection."),
    (r"^query_embed\.", "model.query_position_embeddings."),
    (r"^class_embed\.", "class_labels_classifier."),
    (r"^bbox_embed\.", "bbox_predictor."),
    *LAYERS,
)


def published_config(state: State, name: str) -> PreTrainedConfig:
    """The sizes of a published DETR's weights, read off their shapes; name: of its file."""
    backbone = timm_resnet(state, "backbone.0.body.", [4], output_stride=16 if "dc5" in name.lower() else None)
    classes = len(state["class_embed.weight"]) - 1
    return AutoConfig.for_model("detr", backbone_config=backbone, num_labels=classes, **sizes_of_transformer(state))


class Detr(Family):
    """DETR: as `Family` has it, classes by softmax. Its published files: facebookresearch/detr, `detr-r50` and its like."""

    source = "https://github.com/facebookresearch/detr"
    layout = Layout("DETR", "transformer.decoder.layers.0.multihead_attn.in_proj_weight", RULES, published_config, PHOTOGRAPHS)
    class_loss = ClassLoss.CROSS_ENTROPY

    @torch.no_grad()
    def initialise(self, model: DetectionModel) -> None:
        xavier_matrices(model.model.encoder, model.model.decoder)
        nn.init.normal_(model.model.query_position_embeddings.weight)


class ConditionalDetr(Family):
    """Conditional DETR: the box head answers offsets from reference points that all layers share."""

    source = "https://github.com/Atten4Vis/ConditionalDETR"
    box_layers: ClassVar[Mapping[str, str]] = {**Family.box_layers, "*ref_point_head*": "reference points"}
    delicate_layers: ClassVar[Mapping[str, str]] = {"*query_scale*": "scales position embeddings"}

    @torch.no_grad()
    def initialise(self, model: DetectionModel) -> None:
        xavier_matrices(model.model.encoder, model.model.decoder)
        nn.init.normal_(model.model.query_position_embeddings.weight)
        rare_classes([model.class_labels_classifier])
        unmoved_boxes([model.bbox_predictor])

    def layers(self, model: DetectionModel, run: DecoderRun) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.normed(model, run)
        centre = inverse_sigmoid(run.output.reference_points.transpose(0, 1))  # (B, N, 2), the same for all layers
        raw = model.bbox_predictor(hidden)
        return model.class_labels_classifier(hidden), torch.cat([raw[..., :2] + centre, raw[..., 2:]], -1).sigmoid(), hidden


FAMILIES = {"detr": Detr(), "conditional_detr": ConditionalDetr()}
