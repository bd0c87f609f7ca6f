"""SwinDETR: DETR on the stages of a Swin Transformer (Lee et al., "Efficient SwinDETR", section 2).

Swin loses its class head; one fully connected layer a stage brings the stage's tokens to the encoder's width; the tokens of all
chosen stages, told apart by learned level embeddings, are one sequence for DETR's encoder. `stages=[4]` is plain DETR on Swin
(49 tokens at 224 x 224), `[2, 3, 4]` also shows the encoder strides 8 and 16 (1,029 tokens).

The paper's distillation queries are a second set of learned embeddings that the object queries attend to and that attend to
them. Their place is the decoder call: concatenated to the content and position of the object queries along N they are decoded
by the same layers and heads, which know nothing of how many queries there are.

Trains under `torch.compile`, inductor too, the matching excepted. Images of any size; an image's output does not depend on its
padding.
"""

import warnings
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForObjectDetection, SwinConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.models.detr.modeling_detr import DetrSinePositionEmbedding

from leandetr.detectors.models.detr_layers import (
    Decoder,
    Encoder,
    SetPredictionConfig,
    SetPredictionModel,
    SetPredictionPreTrainedModel,
    TrunkOutput,
)
from leandetr.detectors.models.masked_backbones import MaskedSwin
from leandetr.errors import UserError, unknown

SWINS: dict[str, dict[str, Any]] = {
    "swin_tiny": {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
    "swin_small": {"embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)},
    "swin_base": {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
}


class SwinDetrConfig(SetPredictionConfig):
    """DETR's configuration, and:

    backbone: a name in `SWINS`, in place of a `backbone_config` (a `SwinConfig`); tiny by default.
    stages: numbers of the Swin stages that the encoder sees, increasing, counted from 1 (stride 4). Stages after the last of
        them are not built.
    max_tokens: dense attention costs the square of the tokens; beyond this many a warning says so. The default is what three
        stages give at 448 x 448.
    eos_coefficient: weight of the no-object column in the cross-entropy.

    Raises UserError for an unknown backbone and for stages that the Swin does not have.
    """

    model_type = "swin_detr"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(config_class=AutoConfig, model_type="swin")}  # noqa: RUF012

    stages: list[int] | tuple[int, ...] = (2, 3, 4)
    max_tokens: int = 4116
    eos_coefficient: float = 0.1

    def __post_init__(self, **kwargs: Any) -> None:
        name = kwargs.pop("backbone", None)
        if name is not None:
            if name not in SWINS:
                raise unknown("Swin", name, SWINS)
            self.backbone_config = SwinConfig(**SWINS[name])
        super().__post_init__(**kwargs)
        swin: Any = self.backbone_config
        self.stages = list(self.stages)
        there = range(1, len(swin.depths) + 1)
        if not self.stages or self.stages != sorted(set(self.stages)) or not set(self.stages) <= set(there):
            raise UserError(
                f"stages {self.stages}: give increasing numbers between 1 and {len(there)}, such as {list(there)[1:]} "
                f"or [{len(there)}]"
            )
        deepest = self.stages[-1]
        swin.depths, swin.num_heads = list(swin.depths)[:deepest], list(swin.num_heads)[:deepest]
        swin.num_layers, swin.hidden_size = deepest, swin.embed_dim * 2 ** (deepest - 1)
        swin.stage_names = ["stem", *(f"stage{number}" for number in range(1, deepest + 1))]
        swin.set_output_features_output_indices(out_indices=None, out_features=[f"stage{number}" for number in self.stages])


class SwinDetrPreTrainedModel(SetPredictionPreTrainedModel):
    """What transformers asks of every model of the family."""

    config: SwinDetrConfig
    _no_split_modules = ["SwinStage", "DetrEncoderLayer", "DetrDecoderLayer"]  # noqa: RUF012


class SwinDetrModel(SwinDetrPreTrainedModel):
    """Backbone, projections, encoder and decoder."""

    def __init__(self, config: SwinDetrConfig) -> None:
        super().__init__(config)
        width = config.d_model
        self.backbone = MaskedSwin(cast(SwinConfig, config.backbone_config))
        self.input_projections = nn.ModuleList(nn.Linear(channels, width) for channels in self.backbone.model.channels)
        self.position_embedding = DetrSinePositionEmbedding(width // 2, normalize=True)
        self.level_embeddings = nn.Embedding(len(config.stages), width) if len(config.stages) > 1 else None
        self.query_position_embeddings = nn.Embedding(config.num_queries, width)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.post_init()

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> TrunkOutput:
        """(B, 3, H, W), (B, H, W) -> states of N queries over S = sum(h * w) tokens of the chosen stages, finest first."""
        levels, places, masks, shapes = [], [], [], []
        for level, (features, mask) in enumerate(self.backbone(pixel_values, pixel_mask)):
            levels.append(self.input_projections[level](features.flatten(2).transpose(1, 2)))
            position = self.position_embedding(features.shape, features.device, features.dtype, mask).flatten(2).transpose(1, 2)
            if self.level_embeddings is not None:
                position = position + self.level_embeddings.weight[level]
            places.append(position)
            if mask is not None:
                masks.append(mask.flatten(1))
            shapes.append(tuple(features.shape[-2:]))
        tokens, positions = torch.cat(levels, dim=1), torch.cat(places, dim=1)
        mask = torch.cat(masks, dim=1) if masks else None
        self.warn_of_many(tokens.shape[1])
        memory = self.encoder(
            inputs_embeds=tokens, attention_mask=mask, spatial_position_embeddings=positions
        ).last_hidden_state
        queries = self.query_position_embeddings.weight.expand(memory.shape[0], -1, -1)
        decoded = self.decoder(
            inputs_embeds=torch.zeros_like(queries),
            object_queries_position_embeddings=queries,
            encoder_hidden_states=memory,
            encoder_attention_mask=mask,
            spatial_position_embeddings=positions,
            spatial_shapes_list=shapes,
        )
        return TrunkOutput(**decoded, encoder_last_hidden_state=memory)

    def warn_of_many(self, tokens: int) -> None:
        if tokens > self.config.max_tokens and not torch.compiler.is_compiling():
            warnings.warn(
                f"{tokens} tokens are more than max_tokens={self.config.max_tokens}, and attention costs their square; "
                f"leave out the finest of the stages {self.config.stages}, or give smaller images",
                stacklevel=2,
            )


class SwinDetrForObjectDetection(SwinDetrPreTrainedModel, SetPredictionModel):
    """SwinDETR with DETR's heads: logits of K + 1 columns, the last of them no-object."""

    def __init__(self, config: SwinDetrConfig) -> None:
        SetPredictionModel.__init__(self, config, SwinDetrModel(config), columns=config.num_labels + 1)


AutoConfig.register(SwinDetrConfig.model_type, SwinDetrConfig)
AutoModelForObjectDetection.register(SwinDetrConfig, SwinDetrForObjectDetection)
