"""SMCA-DETR: spatially modulated co-attention, single scale (Gao et al., ICCV 2021, "Fast Convergence of DETR with Spatially
Modulated Co-Attention"; details from the public code, gaopengcuhk/SMCA-DETR).

DETR whose decoder looks near a point: every query predicts a reference centre once, and in every layer and head an offset from
it and a scale; a Gaussian around that point is multiplied into the co-attention, which is its logarithm added to the logits:

    softmax( q k^T / sqrt(d) + G ) v,    G(p, g) = -( s_x (p_x - g_x)^2 + s_y (p_y - g_y)^2 ) / smooth

with p the point and g the key's cell, both in cells of the feature map, and s the square of what the head predicts. Boxes are
relative to the centre. The head is sigmoid with focal loss.

Trains under `torch.compile`, the matching excepted. An image's output does not depend on its padding where its backbone's does
not, see `ConvBackbone`.
"""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForObjectDetection, DetrConfig
from transformers import initialization as init
from transformers.configuration_utils import SubConfigSpec
from transformers.models.detr.modeling_detr import DetrDecoderLayer, DetrMLPPredictionHead, DetrSinePositionEmbedding

from leandetr.detectors.models.detr_layers import (
    Decoder,
    DecoderOutput,
    Encoder,
    SetPredictionConfig,
    SetPredictionModel,
    SetPredictionPreTrainedModel,
    TrunkOutput,
)
from leandetr.detectors.models.masked_backbones import ConvBackbone, feature_stride
from leandetr.errors import unknown

#: variants of the scale, and how many values a head predicts for each ("type1" to "type4" in the public code)
SCALES = {"none": 0, "single": 1, "independent": 2, "cross": 3}


class SmcaDetrConfig(SetPredictionConfig):
    """DETR's configuration with the focal matching and loss, and:

    backbone: name of a timm model, in place of a `backbone_config`; ResNet-50 by default.
    scale: "none" (1 everywhere), "single" (one scale a head), "independent" (x and y), "cross" (x, y and their product).
    smooth: bandwidth of the Gaussian, in squared cells.
    focal_alpha: weight of the positives in the focal loss.

    Raises UserError for an unknown scale.
    """

    model_type = "smca_detr"
    sub_configs_defaults = {  # noqa: RUF012
        "backbone_config": SubConfigSpec(config_class=AutoConfig, model_type="timm_backbone")
    }

    num_queries: int = 300
    scale: str = "independent"
    smooth: float = 8
    class_cost: float = 2
    class_loss_coefficient: float = 2
    focal_alpha: float = 0.25

    def __post_init__(self, **kwargs: Any) -> None:
        name = kwargs.pop("backbone", None)
        if self.backbone_config is None:
            self.backbone_config = AutoConfig.for_model(
                "timm_backbone", backbone=name or "resnet50", out_indices=[4], freeze_batch_norm_2d=True
            )
        super().__post_init__(**kwargs)
        if self.scale not in SCALES:
            raise unknown("scale", self.scale, SCALES)


def log_gaussian(point: Tensor, scale: Tensor, cells: tuple[int, int], smooth: float) -> Tensor:
    """G of every cell: -(s_x dx^2 + s_y dy^2 + s_xy dx^2 dy^2) / smooth.

    Args:
        point: (..., 2), (x, y) in cells.
        scale: (..., 0 to 3), already squared: none, one for both axes, (s_x, s_y), or (s_x, s_y, s_xy).
        cells: (h, w) of the map; cell g has the coordinates (0 to w - 1, 0 to h - 1).
        smooth: the bandwidth.

    Returns (..., h * w), row by row, at most zero.
    """
    rows, columns = (torch.arange(side, device=point.device, dtype=point.dtype) for side in cells)
    dx2 = (point[..., 0, None] - columns).square()[..., None, :]
    dy2 = (point[..., 1, None] - rows).square()[..., :, None]
    parts = [part[..., None, None] for part in scale.unbind(-1)]
    if not parts:
        distance = dx2 + dy2
    elif len(parts) == 1:
        distance = parts[0] * (dx2 + dy2)
    else:
        distance = parts[0] * dx2 + parts[1] * dy2
    if len(parts) == 3:
        distance = distance + parts[2] * dx2 * dy2
    return -distance.flatten(-2) / smooth


class SmcaDecoderLayer(DetrDecoderLayer):
    """DETR's decoder layer with a Gaussian on its co-attention. The fourth norm, on content plus position, feeds the
    predictions of centre, offset and scale."""

    def __init__(self, config: SmcaDetrConfig) -> None:
        super().__init__(cast(DetrConfig, config))
        self.heads, self.smooth = config.decoder_attention_heads, config.smooth
        self.query_norm = nn.LayerNorm(config.d_model)
        self.offset = nn.Linear(config.d_model, 2 * self.heads)
        count = SCALES[config.scale]
        self.scale = nn.Linear(config.d_model, count * self.heads) if count else None

    def forward(  # type: ignore[override]  # `SmcaDecoder` alone calls it
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        spatial_position_embeddings: Tensor,
        object_queries_position_embeddings: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor | None,
        centre: Tensor,
        cells: tuple[int, int],
    ) -> Tensor:
        """As DETR's layer, but for the mask of the memory, (B, S) bool or None; centre (B, N, 2) in cells of the (h, w) map."""
        bias = self.modulation(hidden_states + object_queries_position_embeddings, centre, cells)
        if encoder_attention_mask is not None:
            bias = bias.masked_fill(~encoder_attention_mask[:, None, None, :], torch.finfo(bias.dtype).min)
        return super().forward(
            hidden_states,
            attention_mask,
            spatial_position_embeddings,
            object_queries_position_embeddings,
            encoder_hidden_states,
            bias,
        )

    def modulation(self, queries: Tensor, centre: Tensor, cells: tuple[int, int]) -> Tensor:
        """Content plus position (B, N, D), centre (B, N, 2) -> G (B, heads, N, h * w)."""
        normed = self.query_norm(queries)
        # float32 also under autocast: eight bits cannot tell the cells of a large map apart
        point = centre[:, None].float() + self.by_head(self.offset(normed))
        scale = point[..., :0] if self.scale is None else self.by_head(self.scale(normed)).square()
        return log_gaussian(point, scale, cells, self.smooth).to(queries.dtype)

    def by_head(self, values: Tensor) -> Tensor:
        """(B, N, heads * n) -> (B, heads, N, n) float32."""
        return values.unflatten(-1, (self.heads, -1)).transpose(1, 2).float()


class SmcaDecoder(Decoder):
    """Decoder layers that share one reference centre a query, predicted before the first of them and refined by none."""

    config: SmcaDetrConfig
    layer_class = SmcaDecoderLayer

    def __init__(self, config: SmcaDetrConfig) -> None:
        super().__init__(config)
        self.reference_predictor = DetrMLPPredictionHead(config.d_model, config.d_model, 2, num_layers=3)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        # all Gaussians start round, of scale 1
        if isinstance(module, nn.Linear) and any(module is layer.scale for layer in self.layers):
            init.zeros_(module.weight)
            init.ones_(module.bias)

    def forward(  # type: ignore[override]  # `SmcaDetrModel` alone calls it
        self,
        *,
        inputs_embeds: Tensor,
        object_queries_position_embeddings: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor | None,
        spatial_position_embeddings: Tensor,
        spatial_shapes_list: list[tuple[int, int]],
        image_cells: Tensor,
    ) -> DecoderOutput:
        """As `Decoder.forward`. spatial_shapes_list: the (h, w) of the one map. image_cells (B, 2): width and height of the
        images without their padding, in cells and fractions of them."""
        first: Any = self.layers[0]
        normed = first.query_norm(inputs_embeds + object_queries_position_embeddings)
        reference_logits = self.reference_predictor(normed)
        output = self.through_layers(
            inputs_embeds,
            spatial_position_embeddings,
            object_queries_position_embeddings,
            encoder_hidden_states,
            encoder_attention_mask,
            reference_logits.sigmoid() * image_cells[:, None],
            spatial_shapes_list[0],
        )
        output.reference_logits = reference_logits
        return output


class SmcaDetrPreTrainedModel(SetPredictionPreTrainedModel):
    """What SMCA DETR's model and detector share."""

    config: SmcaDetrConfig
    _no_split_modules = ["ConvBackbone", "DetrEncoderLayer", "SmcaDecoderLayer"]  # noqa: RUF012


class SmcaDetrModel(SmcaDetrPreTrainedModel):
    """Backbone, encoder and modulated decoder, on the backbone's last map."""

    def __init__(self, config: SmcaDetrConfig) -> None:
        super().__init__(config)
        self.backbone = ConvBackbone(config)
        self.input_projection = nn.Conv2d(self.backbone.channels[-1], config.d_model, kernel_size=1)
        self.position_embedding = DetrSinePositionEmbedding(config.d_model // 2, normalize=True)
        self.query_position_embeddings = nn.Embedding(config.num_queries, config.d_model)
        self.encoder = Encoder(config)
        self.decoder = SmcaDecoder(config)
        self.post_init()

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> TrunkOutput:
        """(B, 3, H, W), (B, H, W) -> states of N queries over S = h * w tokens."""
        features, mask = self.backbone(pixel_values, pixel_mask)[-1]
        stride = feature_stride(pixel_values.shape[-2:], features.shape[-2:])
        position = self.position_embedding(features.shape, features.device, features.dtype, mask).flatten(2).transpose(1, 2)
        mask = None if mask is None else mask.flatten(1)
        memory = self.encoder(
            inputs_embeds=self.input_projection(features).flatten(2).transpose(1, 2),
            attention_mask=mask,
            spatial_position_embeddings=position,
        ).last_hidden_state
        queries = self.query_position_embeddings.weight.expand(memory.shape[0], -1, -1)
        decoded = self.decoder(
            inputs_embeds=torch.zeros_like(queries),
            object_queries_position_embeddings=queries,
            encoder_hidden_states=memory,
            encoder_attention_mask=mask,
            spatial_position_embeddings=position,
            spatial_shapes_list=[tuple(features.shape[-2:])],
            image_cells=image_sizes(pixel_values, pixel_mask) / stride,
        )
        return TrunkOutput(**decoded, encoder_last_hidden_state=memory)


def image_sizes(pixel_values: Tensor, pixel_mask: Tensor | None) -> Tensor:
    """(B, 2) float, width and height in pixels of the images without their padding."""
    if pixel_mask is None:
        height, width = pixel_values.shape[-2:]
        return pixel_values.new_tensor([width, height]).expand(pixel_values.shape[0], 2)
    there = pixel_mask.bool()
    return torch.stack([there.any(1).sum(1), there.any(2).sum(1)], dim=-1).to(pixel_values.dtype)


class SmcaDetrForObjectDetection(SmcaDetrPreTrainedModel, SetPredictionModel):
    """SMCA-DETR with its heads: sigmoid logits of K columns, boxes relative to the reference centre."""

    _focal = True

    def __init__(self, config: SmcaDetrConfig) -> None:
        SetPredictionModel.__init__(self, config, SmcaDetrModel(config), columns=config.num_labels)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self.class_labels_classifier:  # every class starts at .01, or background would drown the focal loss
            init.constant_(module.bias, -math.log(99))


AutoConfig.register(SmcaDetrConfig.model_type, SmcaDetrConfig)
AutoModelForObjectDetection.register(SmcaDetrConfig, SmcaDetrForObjectDetection)
