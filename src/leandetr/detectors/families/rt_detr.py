"""RT-DETR and RT-DETRv2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from accelerate.utils import reduce
from torch import Tensor, distributed
from transformers import AutoConfig, PreTrainedConfig

from leandetr.detectors.backbones import Backbone
from leandetr.detectors.families.family import SAMPLING, DecoderRun, Family, Rows, inverse_sigmoid
from leandetr.detectors.families.layout import LAYERS, SQUARES, Layout, Rules, State, numbers_after
from leandetr.heads import ClassLoss
from leandetr.structures import DetectionModel, Target

_RESNET_VD = "model.backbone.model.encoder.stages."
RULES: Rules = (
    # "conv1_1" to "conv1_3" of the stem count from one
    (r"^backbone\.conv1\.conv1_1\.", "model.backbone.model.embedder.embedder.0."),
    (r"^backbone\.conv1\.conv1_2\.", "model.backbone.model.embedder.embedder.1."),
    (r"^backbone\.conv1\.conv1_3\.", "model.backbone.model.embedder.embedder.2."),
    (r"^backbone\.res_layers\.(\d+)\.blocks\.(\d+)\.", _RESNET_VD + r"\1.layers.\2."),
    (r"\.branch2a\.", ".layer.0."),
    (r"\.branch2b\.", ".layer.1."),
    (r"\.branch2c\.", ".layer.2."),
    (r"\.short\.conv\.(conv|norm)\.", r".shortcut.1.\1."),  # behind the average pooling of stages that halve the map
    (r"\.short\.(conv|norm)\.", r".shortcut.\1."),
    (r"^(model\.backbone\..*)\.conv\.", r"\1.convolution."),
    (r"^(model\.backbone\..*)\.norm\.", r"\1.normalization."),
    (r"^encoder\.input_proj\.(\d+)\.conv\.", r"model.encoder_input_proj.\1.0."),  # RT-DETRv2 names what RT-DETR numbers
    (r"^encoder\.input_proj\.(\d+)\.norm\.", r"model.encoder_input_proj.\1.1."),
    (r"^encoder\.input_proj\.", "model.encoder_input_proj."),
    (r"^encoder\.encoder\.", "model.encoder.aifi."),
    (r"^encoder\.", "model.encoder."),
    (r"^decoder\.input_proj\.(\d+)\.conv\.", r"model.decoder_input_proj.\1.0."),
    (r"^decoder\.input_proj\.(\d+)\.norm\.", r"model.decoder_input_proj.\1.1."),
    (r"^decoder\.(denoising_class_embed|enc_score_head|enc_bbox_head)\.", r"model.\1."),
    (r"^decoder\.enc_output\.(0|proj)\.", "model.enc_output.0."),
    (r"^decoder\.enc_output\.(1|norm)\.", "model.enc_output.1."),
    (r"^decoder\.tgt_embed\.", "model.weight_embedding."),
    (r"^decoder\.query_pos_head\.", "model.decoder.query_pos_head."),
    (r"^decoder\.dec_score_head\.", "model.decoder.class_embed."),
    (r"^decoder\.dec_bbox_head\.", "model.decoder.bbox_embed."),
    (r"^decoder\.decoder\.", "model.decoder."),
    (r"\.num_points_scale$", ".n_points_scale"),
    *LAYERS,
)


def published_config(state: State, name: str) -> PreTrainedConfig:
    """The sizes of a published RT-DETR's or RT-DETRv2's weights, read off their shapes; name: of its file."""
    second = any(key.endswith("cross_attn.num_points_scale") for key in state)
    bottleneck = "backbone.res_layers.0.blocks.0.branch2c.conv.weight" in state
    depths = [numbers_after(state, f"backbone.res_layers.{stage}.blocks.") for stage in range(4)]
    widths = [64 * 2**stage * (4 if bottleneck else 1) for stage in range(4)]
    backbone = AutoConfig.for_model(
        "rt_detr_resnet",
        layer_type="bottleneck" if bottleneck else "basic",
        hidden_sizes=widths,
        depths=depths,
        out_features=["stage2", "stage3", "stage4"],
    )
    width, inner = state["decoder.enc_score_head.weight"].shape[1], state["encoder.fpn_blocks.0.conv1.conv.weight"]
    layer = "encoder.encoder.0.layers.0.linear1.weight"
    encoder_width = state[layer].shape[1]
    return AutoConfig.for_model(
        "rt_detr_v2" if second else "rt_detr",
        backbone_config=backbone,
        encoder_in_channels=widths[1:],
        num_labels=len(state["decoder.enc_score_head.weight"]),
        d_model=width,
        decoder_in_channels=[encoder_width] * 3,
        encoder_hidden_dim=encoder_width,
        encoder_ffn_dim=len(state[layer]),
        decoder_ffn_dim=len(state["decoder.decoder.layers.0.linear1.weight"]),
        decoder_layers=numbers_after(state, "decoder.decoder.layers."),
        hidden_expansion=len(inner) / encoder_width,
    )


class RtDetr(Family):
    """RT-DETR and RT-DETRv2: heads inside the decoder, queries chosen by the encoder, denoising queries first in training. Its
    published files: lyuwenyu/RT-DETR, weights of the "ema" first; anchors, of one image size, are no weights."""

    source = "https://github.com/lyuwenyu/RT-DETR"
    published_size = (640, 640)
    layout: ClassVar[Layout | None] = Layout(
        "RT-DETR",
        "decoder.enc_score_head.weight",
        RULES,
        published_config,
        SQUARES,
        no_weights=r"num_batches_tracked$|^decoder\.(anchors|valid_mask)$",
    )
    arguments: ClassVar[dict[str, str]] = {"content": "inputs_embeds", "reference": "reference_points"}
    class_loss: ClassVar[ClassLoss] = ClassLoss.VARIFOCAL
    reference_logits = True
    queries_from_encoder = True
    proposes_classes = True
    content_from_memory = True
    group_masks = ("encoder_attention_mask",)  # the denoising queries' mask of the self-attention, whatever its name says
    stages = 3
    frozen_norm = False  # only where they have been trained before
    size_divisor = 32
    encoder_parts: tuple[str, ...] = ("encoder_input_proj", "encoder", "decoder_input_proj")
    query_table = None
    output_projection: str | None = "output_proj"
    class_layers: ClassVar[Mapping[str, str]] = {"*class_embed*": "class head", "*enc_score_head*": "class head"}
    box_layers: ClassVar[Mapping[str, str]] = {"*bbox_embed*": "box head", "*enc_bbox_head*": "box head"}
    delicate_layers: ClassVar[Mapping[str, str]] = {**SAMPLING, "*query_pos_head*": "takes box coordinates"}
    slow_layers = ("sampling_offsets",)

    def follows(self, backbone: Backbone, frozen_norm: bool, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """It repeats its backbone's channels and strides, and has one width through encoder and decoder where only one of them
        was asked for."""
        width = overrides.get("encoder_hidden_dim", overrides.get("d_model"))
        widths = {"encoder_hidden_dim": width, "d_model": width, "decoder_in_channels": [width] * len(backbone.channels)}
        return {
            "encoder_in_channels": backbone.channels,
            "feat_strides": backbone.strides,
            "freeze_backbone_batch_norms": frozen_norm and backbone.config.model_type != "timm_backbone",
        } | ({} if width is None else widths)

    def class_rows(self, config: PreTrainedConfig) -> dict[str, Rows]:
        return {
            "*class_embed.[0-9]*": Rows.CLASSES,
            "model.enc_score_head": Rows.PROPOSALS,
            "model.denoising_class_embed": Rows.LABELS,
        }

    def query_groups(self, key: str, config: PreTrainedConfig) -> int:
        return int(key == "model.weight_embedding.weight")

    def content_of(self, model: DetectionModel, cells: Tensor) -> Tensor:
        return model.model.enc_output(cells)

    def proposed_boxes(self, model: DetectionModel, content: Tensor, anchors: Tensor) -> Tensor:
        return (model.model.enc_bbox_head(content) + inverse_sigmoid(anchors)).sigmoid()

    def proposals(self, model: DetectionModel, answer: Any) -> tuple[Tensor, Tensor]:
        return answer.enc_topk_logits, answer.enc_topk_bboxes

    def layers(self, model: DetectionModel, run: DecoderRun) -> tuple[Tensor, Tensor, Tensor]:
        output = run.output
        stacked = output.intermediate_logits, output.intermediate_reference_points, output.intermediate_hidden_states
        return tuple(tensor.transpose(0, 1) for tensor in stacked)

    def extra_queries(self, model: DetectionModel, run: DecoderRun) -> slice:
        return slice(run.call["inputs_embeds"].shape[1] - model.config.num_queries, None)

    def labels_enter_model(self, training: bool) -> bool:
        return True

    def share_of_boxes(self, labels: Sequence[Target]) -> Tensor | float:
        """Every term is divided by the number of this process's own boxes (at least 1), where it should be the processes'
        mean."""
        if not distributed.is_initialized():
            return 1.0
        own = torch.tensor(float(sum(len(target["boxes"]) for target in labels)), device=labels[0]["boxes"].device)
        return own.clamp(min=1) / reduce(own, "mean").clamp(min=1)


RT_DETR = RtDetr()
FAMILIES = {"rt_detr": RT_DETR, "rt_detr_v2": RT_DETR}
