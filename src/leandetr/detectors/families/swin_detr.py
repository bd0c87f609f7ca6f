"""SwinDETR."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

from leandetr.detectors.backbones import Backbone, configured
from leandetr.detectors.families.family import DecoderRun, Family
from leandetr.detectors.models.swin_detr import SWINS, SwinDetrConfig
from leandetr.detectors.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from leandetr.errors import unknown
from leandetr.heads import ClassLoss
from leandetr.structures import DetectionModel, Preprocessing


class SwinDetr(Family):
    """SwinDETR: DETR on the stages of a Swin. The content queries enter the first layer as zeros: the values of its
    self-attention have a weight that gets no gradient."""

    source = "Efficient SwinDETR (Lee et al.), section 2"
    published_size = (224, 224)
    class_loss = ClassLoss.CROSS_ENTROPY
    own_backbones = tuple(SWINS)
    encoder_parts = ("input_projections", "level_embeddings", "encoder")

    def describe_backbone(
        self, name: str, image_size: tuple[int, int], frozen_norm: bool, overrides: dict[str, Any]
    ) -> Backbone:
        """One of `SWINS`."""
        if name not in SWINS:
            raise unknown("Swin", name, SWINS)
        config = configured("swin", SWINS[name], overrides)
        growth = [2**stage for stage in range(len(config.depths))]
        channels, strides = [config.embed_dim * times for times in growth], [config.patch_size * times for times in growth]
        return Backbone(config, channels, strides, IMAGENET_MEAN, IMAGENET_STD)

    def own_preprocessing(self, config: PreTrainedConfig) -> Preprocessing:
        return Preprocessing(size=self.published_size, mean=IMAGENET_MEAN, std=IMAGENET_STD)

    def layers(self, model: DetectionModel, run: DecoderRun) -> tuple[Tensor, Tensor, Tensor]:
        hidden = run.output.intermediate_hidden_states
        return *model.heads(hidden), hidden


FAMILIES = {SwinDetrConfig.model_type: SwinDetr()}
