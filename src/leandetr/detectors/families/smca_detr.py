"""SMCA-DETR."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor
from transformers import PreTrainedConfig

from leandetr.detectors.families.detr import RULES as DETR
from leandetr.detectors.families.family import DecoderRun, Family
from leandetr.detectors.families.layout import PHOTOGRAPHS, Layout, Rules, State, sizes_of_transformer, timm_resnet
from leandetr.detectors.models.smca_detr import SCALES, SmcaDetrConfig
from leandetr.structures import DetectionModel

RULES: Rules = (
    (r"^transformer\.decoder\.layers\.0\.point1\.", "model.decoder.reference_predictor."),
    (r"\.point2\.", ".offset."),
    (r"\.point3\.", ".scale."),
    (r"\.norm4\.", ".query_norm."),
    *DETR,
)


def published_config(state: State, name: str) -> PreTrainedConfig:
    """The sizes of a published SMCA DETR's weights, read off their shapes; name: of its file."""
    backbone = timm_resnet(state, "backbone.0.body.", [4])
    sizes = sizes_of_transformer(state)
    scale = "transformer.decoder.layers.0.point3.weight"
    values = len(state[scale]) // sizes["decoder_attention_heads"] if scale in state else 0
    kind = next(kind for kind, count in SCALES.items() if count == values)
    return SmcaDetrConfig(backbone_config=backbone, num_labels=len(state["class_embed.weight"]), scale=kind, **sizes)


class SmcaDetr(Family):
    """SMCA-DETR. As in DETR, the content queries enter the first layer as zeros: the values of its self-attention have a weight
    that gets no gradient. Its published files: gaopengcuhk/SMCA-DETR, DETR's with point1 to point3 and norm4."""

    source = "https://github.com/gaopengcuhk/SMCA-DETR"
    layout = Layout("SMCA-DETR", "transformer.decoder.layers.0.point1.layers.0.weight", RULES, published_config, PHOTOGRAPHS)
    bound_heads = ("encoder_attn",)
    box_layers: ClassVar[Mapping[str, str]] = {**Family.box_layers, "*reference_predictor*": "reference points"}
    delicate_layers: ClassVar[Mapping[str, str]] = {
        "*decoder.layers.*.offset": "offsets from the reference point",
        "*decoder.layers.*.scale": "scales of the Gaussian",
    }

    def layers(self, model: DetectionModel, run: DecoderRun) -> tuple[Tensor, Tensor, Tensor]:
        hidden = run.output.intermediate_hidden_states
        return *model.heads(hidden, run.output.reference_logits), hidden


FAMILIES = {SmcaDetrConfig.model_type: SmcaDetr()}
