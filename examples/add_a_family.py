"""Add a detector family: its model, one `Family` and one call of `register`, and every verb knows it.

It is a DETR without an encoder, whose queries name a point that their boxes are told from. A family of which transformers has
the model needs `Pointed` and `register` alone.

    python examples/add_a_family.py DATA runs/pointed
"""

import sys
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForObjectDetection, TimmBackboneConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.models.detr.modeling_detr import DetrSinePositionEmbedding

import leandetr
from leandetr import NewDetector, Training
from leandetr.detectors.families import registry
from leandetr.detectors.families.family import Family
from leandetr.detectors.models.detr_layers import (
    Decoder,
    SetPredictionConfig,
    SetPredictionModel,
    SetPredictionPreTrainedModel,
    TrunkOutput,
)
from leandetr.detectors.models.masked_backbones import ConvBackbone
from leandetr.detectors.names import Model


class PointedConfig(SetPredictionConfig):
    model_type = "pointed_detr"
    sub_configs_defaults: ClassVar = {"backbone_config": SubConfigSpec(config_class=AutoConfig, model_type="timm_backbone")}

    focal_alpha: float = 0.25

    def __post_init__(self, **kwargs):
        if self.backbone_config is None:
            self.backbone_config = TimmBackboneConfig(backbone="resnet18", out_indices=[4])
        super().__post_init__(**kwargs)


class PointedDecoder(Decoder):
    def __init__(self, config):
        super().__init__(config)
        self.spot = nn.Linear(config.d_model, 2)
        self.post_init()

    def forward(self, *, object_queries_position_embeddings, **call):
        output = super().forward(object_queries_position_embeddings=object_queries_position_embeddings, **call)
        output.reference_logits = self.spot(object_queries_position_embeddings)
        return output


class PointedTrunk(SetPredictionPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.backbone = ConvBackbone(config)
        self.projection = nn.Conv2d(self.backbone.channels[-1], config.d_model, kernel_size=1)
        self.position_embedding = DetrSinePositionEmbedding(config.d_model // 2, normalize=True)
        self.wishes = nn.Embedding(config.num_queries, config.d_model)
        self.decoder = PointedDecoder(config)
        self.post_init()

    def forward(self, pixel_values, pixel_mask=None):
        features, mask = self.backbone(pixel_values, pixel_mask)[-1]
        position = self.position_embedding(features.shape, features.device, features.dtype, mask).flatten(2).transpose(1, 2)
        queries = self.wishes.weight.expand(len(features), -1, -1)
        decoded = self.decoder(
            inputs_embeds=torch.zeros_like(queries),
            object_queries_position_embeddings=queries,
            encoder_hidden_states=self.projection(features).flatten(2).transpose(1, 2),
            encoder_attention_mask=None if mask is None else mask.flatten(1),
            spatial_position_embeddings=position,
            spatial_shapes_list=[tuple(features.shape[-2:])],
        )
        return TrunkOutput(**decoded)


class PointedDetr(SetPredictionModel):
    config: PointedConfig
    _focal = True

    def __init__(self, config):
        super().__init__(config, PointedTrunk(config), columns=config.num_labels)


class Pointed(Family):
    source = "examples/add_a_family.py"
    published_size = (64, 64)
    query_table = "wishes"
    box_layers: ClassVar = {**Family.box_layers, "*decoder.spot": "points"}
    slow_layers = ("decoder.spot",)

    @torch.no_grad()
    def initialise(self, model):
        nn.init.constant_(model.model.decoder.spot.bias, 0.25)

    def layers(self, model, run):
        hidden = run.output.intermediate_hidden_states
        return *model.heads(hidden, run.output.reference_logits), hidden


def register() -> None:
    AutoConfig.register(PointedConfig.model_type, PointedConfig, exist_ok=True)
    AutoModelForObjectDetection.register(PointedConfig, PointedDetr, exist_ok=True)
    registry.register("pointed_detr", Pointed(), pointed=Model("pointed_detr", "test_resnet", "DETR that points"))


def main(data: str, out: str, training: Training = Training(epochs=30)) -> leandetr.Detector:
    register()
    new = NewDetector(model="pointed", image_size=(96, 96), set={"d_model": 64, "decoder_layers": 2, "num_queries": 20})
    return leandetr.train(data, new, Path(out), training)


if __name__ == "__main__":
    main(*sys.argv[1:])
