"""AdaMixer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedConfig

from leandetr.detectors.backbones import Backbone
from leandetr.detectors.families.family import DecoderRun, Family, Rows
from leandetr.detectors.families.layout import PHOTOGRAPHS, Layout, Rules, State, numbers_after, timm_resnet
from leandetr.detectors.models.adamixer import AdaMixerConfig
from leandetr.structures import DetectionModel, Queries

RULES: Rules = (
    (r"^backbone\.", "model.backbone.model."),
    (r"^neck\.lateral_convs\.(\d+)\.conv\.", r"model.input_projections.\1."),
    (r"^neck\.gn_out\.", "model.level_norm."),
    (r"^rpn_head\.init_content_features\.", "model.query_content."),
    (r"^roi_head\.bbox_head\.", "model.decoder.layers."),
    (r"\.attention\.attn\.out_proj\.", ".self_attn.o_proj."),
    (r"\.attention\.attn\.", ".self_attn."),
    (r"\.attention_norm\.", ".self_attn_layer_norm."),
    (r"\.iof_tau$", ".iof_temperature"),
    (r"\.sampling_n_mixing\.sampling_offset_generator\.0\.", ".sampling.offsets."),
    (r"\.sampling_n_mixing\.adaptive_mixing\.parameter_generator\.0\.", ".mixing.parameters_of_query."),
    (r"\.sampling_n_mixing\.adaptive_mixing\.out_proj\.", ".mixing.output."),
    (r"\.sampling_n_mixing\.norm\.", ".mixing_layer_norm."),
    (r"\.ffn\.layers\.0\.0\.", ".fc1."),
    (r"\.ffn\.layers\.1\.", ".fc2."),
    (r"\.ffn_norm\.", ".final_layer_norm."),
    (r"\.cls_fcs\.", ".class_head."),
    (r"\.fc_cls\.", ".class_head.3."),
    (r"\.reg_fcs\.", ".box_head."),
    (r"\.fc_reg\.", ".box_head.3."),
)


def published_config(state: State, name: str) -> PreTrainedConfig:
    """The sizes of a published AdaMixer's weights, read off their shapes; name: of its file."""
    queries, width = state["rpn_head.init_content_features.weight"].shape
    mixing = "roi_head.bbox_head.0.sampling_n_mixing."
    mixed = state[f"{mixing}adaptive_mixing.out_proj.weight"].shape[1] // width
    in_all_groups = len(state[f"{mixing}sampling_offset_generator.0.weight"]) // 3
    generated = len(state[f"{mixing}adaptive_mixing.parameter_generator.0.weight"])
    groups = width**2 // (generated - mixed * in_all_groups)  # a group mixes (width / groups)^2 channels
    levels = numbers_after(state, "neck.lateral_convs.")
    return AdaMixerConfig(
        backbone_config=timm_resnet(state, "backbone.", list(range(5 - levels, 5))),
        num_labels=len(state["roi_head.bbox_head.0.fc_cls.weight"]),
        d_model=width,
        num_queries=queries,
        decoder_layers=numbers_after(state, "roi_head.bbox_head."),
        decoder_ffn_dim=len(state["roi_head.bbox_head.0.ffn.layers.0.0.weight"]),
        decoder_attention_heads=len(state["roi_head.bbox_head.0.iof_tau"]),
        sampling_groups=groups,
        sampling_points=in_all_groups // groups,
        mixing_points=mixed,
    )


class AdaMixer(Family):
    """AdaMixer: no encoder, so that features and memory are the projected backbone's. Boxes may reach out of [0, 1]. Its
    published files: MCG-NJU/AdaMixer, MMDetection 2's; the queries' whole-image boxes, never learned, are no weights."""

    source = "https://github.com/MCG-NJU/AdaMixer"
    layout = Layout(
        "AdaMixer",
        "rpn_head.init_content_features.weight",
        RULES,
        published_config,
        PHOTOGRAPHS,
        no_weights=r"num_batches_tracked$|^rpn_head\.init_proposal_bboxes\.",
    )
    bound_heads = ("self_attn",)
    arguments: ClassVar[dict[str, str]] = {"content": "inputs_embeds", "reference": "reference_points"}
    queries_are_boxes = True
    stages = 4
    encoder_parts = ("input_projections", "level_norm")
    query_table = "query_content"
    class_layers: ClassVar[Mapping[str, str]] = {"*.class_head.*": "class head"}
    box_layers: ClassVar[Mapping[str, str]] = {"*.box_head.*": "box head"}
    delicate_layers: ClassVar[Mapping[str, str]] = {"*.sampling.offsets": "sampling offsets"}

    def follows(self, backbone: Backbone, frozen_norm: bool, overrides: Mapping[str, Any]) -> dict[str, Any]:
        return {"feature_strides": backbone.strides}

    def class_rows(self, config: PreTrainedConfig) -> dict[str, Rows]:
        return {"model.decoder.layers.*.class_head.3": Rows.CLASSES}

    def queries_of_rows(self, model: DetectionModel, rows: Tensor, own: Queries) -> Queries:
        """All queries start from the whole image."""
        return Queries(content=F.layer_norm(rows, rows.shape[-1:]), reference=own.reference)

    def cross_attention(self, layer: Any) -> None:
        return None

    def layers(self, model: DetectionModel, run: DecoderRun) -> tuple[Tensor, Tensor, Tensor]:
        output = run.output
        return output.intermediate_logits, output.intermediate_boxes, output.intermediate_hidden_states


FAMILIES = {AdaMixerConfig.model_type: AdaMixer()}
