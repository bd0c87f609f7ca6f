"""LW-DETR and RF-DETR, each made for one windowed vision transformer."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig

from leandetr.detectors.backbones import Backbone, configured
from leandetr.detectors.families.family import SAMPLING, DecoderRun, Family, Rows
from leandetr.detectors.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from leandetr.heads import ClassLoss
from leandetr.structures import DetectionModel, Preprocessing, Target


class LwDetr(Family):
    """LW-DETR and RF-DETR: in training, `group_detr` sets of queries that do not see each other, the main one first. All layers
    refine the same reference boxes, which the encoder proposes and learned offsets move; boxes may reach out of [0, 1].

    A checkpoint with a `mask_token` keeps it; only pretraining by masked images gives it a gradient.

    Args:
        source, published_size: see `Family`.
        vit: model type of the vision transformer.
        values: of its configuration, as in the published models.
        sides: its keys of the side, in pixels, of the images that position embeddings are made for.
        windows_of_image: its `num_windows` counts all windows of an image, and not those along a side.
    """

    arguments: ClassVar[dict[str, str]] = {"content": "inputs_embeds", "reference": "reference_points"}
    class_loss: ClassVar[ClassLoss] = ClassLoss.IOU_AWARE
    queries_from_encoder = True
    queries_are_boxes = True
    proposes_classes = True
    one_backbone = True
    encoder_parts = ("backbone",)  # with the projector that follows the vision transformer
    query_table = None
    output_projection = "output_proj"
    class_layers: ClassVar[Mapping[str, str]] = {"*class_embed*": "class head"}
    box_layers: ClassVar[Mapping[str, str]] = {"*bbox_embed*": "box head", "*ref_point_head*": "reference points"}
    delicate_layers: ClassVar[Mapping[str, str]] = SAMPLING
    slow_layers = ("sampling_offsets",)

    def __init__(
        self,
        source: str,
        published_size: tuple[int, int],
        vit: str,
        values: Mapping[str, Any],
        sides: Sequence[str],
        windows_of_image: bool,
    ) -> None:
        self.source, self.published_size, self.own_backbones = source, published_size, (vit,)
        self.vit, self.values, self.sides, self.windows_of_image = vit, values, sides, windows_of_image

    def describe_backbone(
        self, name: str, image_size: tuple[int, int], frozen_norm: bool, overrides: dict[str, Any]
    ) -> Backbone:
        """One width and one stride at every depth. The position embeddings are made for a square of the image's longer side, so
        that square images need no resampling."""
        config = configured(self.vit, {**self.values, **dict.fromkeys(self.sides, max(image_size))}, overrides)
        return Backbone(config, [config.hidden_size], [config.patch_size], IMAGENET_MEAN, IMAGENET_STD)

    def divisor(self, backbone: Mapping[str, Any]) -> int:
        """One patch in each of the vision transformer's windows."""
        plain = AutoConfig.for_model(self.vit)
        windows = backbone.get("num_windows", plain.num_windows)
        along = math.isqrt(windows) if self.windows_of_image else windows
        return backbone.get("patch_size", plain.patch_size) * along

    def class_rows(self, config: PreTrainedConfig) -> dict[str, Rows]:
        return {"class_embed": Rows.CLASSES, "model.enc_out_class_embed.*": Rows.PROPOSALS}

    def own_preprocessing(self, config: PreTrainedConfig) -> Preprocessing:
        """Squares of the side that its position embeddings are made for."""
        side = getattr(config.backbone_config, self.sides[-1])
        return Preprocessing(size=(side, side), mean=IMAGENET_MEAN, std=IMAGENET_STD)

    def query_groups(self, key: str, config: PreTrainedConfig) -> int:
        return config.group_detr if key in ("model.reference_point_embed.weight", "model.query_feat.weight") else 0

    def proposal_strides(self, plain: PreTrainedConfig, backbone: Backbone, values: Mapping[str, Any]) -> list[float]:
        """LW-DETR's projector scales the one map."""
        (stride,) = backbone.strides
        return [stride / scale for scale in values.get("projector_scale_factors", (1.0,))]

    def cross_attention(self, layer: Any) -> nn.Module:
        return layer.cross_attn

    @contextmanager
    def switched(self, model: DetectionModel, replay: bool) -> Iterator[None]:
        """A self-attention in training splits whatever queries it gets into groups: not those of a single one."""
        attentions = [layer.self_attn for layer in model.model.decoder.layers]
        before = [attention.training for attention in attentions]
        for attention in attentions if replay else ():
            attention.training = False
        try:
            yield
        finally:
            for attention, training in zip(attentions, before, strict=True):
                attention.training = training

    def backbone(self, model: DetectionModel) -> nn.Module:
        return model.model.backbone.backbone

    def layers(self, model: DetectionModel, run: DecoderRun) -> tuple[Tensor, Tensor, Tensor]:
        hidden, reference = run.output.intermediate_hidden_states, run.call["reference_points"]
        raw, sides = model.bbox_embed(hidden), reference[..., 2:]
        boxes = torch.cat([raw[..., :2] * sides + reference[..., :2], raw[..., 2:].exp() * sides], -1)
        return model.class_embed(hidden), boxes, hidden

    def proposals(self, model: DetectionModel, answer: Any) -> tuple[Tensor, Tensor]:
        """Those of the first group; what transformers calls logits of coordinates are boxes."""
        main = slice(model.config.num_queries)
        return answer.enc_outputs_class[:, main], answer.enc_outputs_coord_logits[:, main]

    def extra_queries(self, model: DetectionModel, run: DecoderRun) -> slice:
        return slice(model.config.num_queries)

    def labels_enter_model(self, training: bool) -> bool:
        return training

    def loss(self, model: DetectionModel, answer: Any, logits: Tensor, boxes: Tensor, labels: Sequence[Target]) -> Tensor:
        """In evaluation, where the model has one group and its own call of the loss would count `group_detr` of them."""
        config = copy.copy(model.config)
        config.auxiliary_loss, config.group_detr = True, 1
        proposals = answer.enc_outputs_class, answer.enc_outputs_coord_logits
        return model.loss_function(logits[-1], labels, logits.device, boxes[-1], config, logits, boxes, *proposals)[0]


FAMILIES = {
    "lw_detr": LwDetr(  # LW-DETR-small
        "https://github.com/Atten4Vis/LW-DETR",
        (640, 640),
        "lw_detr_vit",
        {
            "hidden_size": 192,
            "num_hidden_layers": 10,
            "window_block_indices": [0, 1, 3, 6, 7, 9],
            "out_indices": [2, 4, 5, 9],
        },
        sides=("image_size", "pretrain_image_size"),
        windows_of_image=True,
    ),
    "rf_detr": LwDetr(  # RF-DETR-base; without a mask token, which only pretraining by masked images would teach
        "https://github.com/roboflow/rf-detr",
        (560, 560),
        "rf_detr_dinov2",
        {"hidden_size": 384, "num_attention_heads": 6, "out_indices": [2, 5, 8, 11], "use_mask_token": False},
        sides=("image_size",),
        windows_of_image=False,
    ),
}
