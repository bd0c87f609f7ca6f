"""AdaMixer (Gao et al., CVPR 2022) as a transformers model: no encoder, no feature pyramid network, no attention to pixels.

Importing this file registers `model_type` "adamixer" with transformers' Auto classes. The published AdaMixer-R50 is the default
configuration; its 3x schedule uses 300 queries. The model trains under `torch.compile`, except for the matching, which runs on
the host, and exports to ONNX (GridSample).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForObjectDetection,
    PreTrainedConfig,
)
from transformers import initialization as init
from transformers.configuration_utils import SubConfigSpec
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from leandetr.detectors.models.adamixer_layers import (
    AdaMixerDecoderLayer,
    LevelNorm,
    boxes_of_position,
    position_of_boxes,
)
from leandetr.detectors.models.detr_layers import SetLossConfig, SetPredictionPreTrainedModel, focal_set_loss
from leandetr.detectors.models.masked_backbones import ConvBackbone
from leandetr.errors import UserError
from leandetr.structures import Target

NORM_GROUPS = 32


class AdaMixerConfig(SetLossConfig):
    """The configuration of AdaMixer, with the focal matching and loss.

    backbone_config: a timm or transformers backbone that yields one map for each of `feature_strides` (default: C2 to C5 of
        timm's resnet50; `backbone="resnet101"` names another timm backbone with the same strides).
    sampling_groups (G), sampling_points (P_in a group), mixing_points (P_out): the sizes of 3-D sampling and adaptive mixing.

    Raises UserError where `d_model` is not a multiple of 32, of the heads and of the groups.
    """

    model_type = "adamixer"
    sub_configs_defaults = {  # noqa: RUF012  (transformers reads this name from the class)
        "backbone_config": SubConfigSpec(config_class=AutoConfig, model_type="timm_backbone")
    }
    attribute_map = {  # noqa: RUF012
        "hidden_size": "d_model",
        "num_attention_heads": "decoder_attention_heads",
        "num_hidden_layers": "decoder_layers",
    }

    backbone_config: dict | PreTrainedConfig | None = None
    feature_strides: list[int] | tuple[int, ...] = (4, 8, 16, 32)
    num_queries: int = 100
    d_model: int = 256
    decoder_layers: int = 6
    decoder_ffn_dim: int = 2048
    decoder_attention_heads: int = 8
    sampling_groups: int = 4
    sampling_points: int = 32
    mixing_points: int = 128
    class_cost: float = 2
    class_loss_coefficient: float = 2
    focal_alpha: float = 0.25

    def __post_init__(self, **kwargs: Any) -> None:
        name = kwargs.pop("backbone", None)
        if self.backbone_config is None:
            stages = list(range(1, len(self.feature_strides) + 1))
            self.backbone_config = AutoConfig.for_model(
                "timm_backbone", backbone=name or "resnet50", out_indices=stages, freeze_batch_norm_2d=True
            )
        divisors = {
            f"{NORM_GROUPS}": NORM_GROUPS,
            f"decoder_attention_heads={self.decoder_attention_heads}": self.decoder_attention_heads,
            f"sampling_groups={self.sampling_groups}": self.sampling_groups,
        }
        for name, divisor in divisors.items():
            if self.d_model % divisor:
                raise UserError(f"d_model={self.d_model} is not a multiple of {name}; choose one that is")
        super().__post_init__(**kwargs)


@dataclass
class AdaMixerDecoderOutput(ModelOutput):
    """Every stage's answer. last_hidden_state: (B, N, D). intermediate_hidden_states: (L, B, N, D). intermediate_logits:
    (L, B, N, K). intermediate_boxes: (L, B, N, 4), (cx, cy, w, h) relative to each image without its padding."""

    last_hidden_state: Tensor | None = None
    intermediate_hidden_states: Tensor | None = None
    intermediate_logits: Tensor | None = None
    intermediate_boxes: Tensor | None = None


@dataclass
class AdaMixerObjectDetectionOutput(ModelOutput):
    """loss: scalar, over all stages, and loss_dict: its unweighted terms, where labels were given. logits: (B, N, K), before
    the sigmoid. pred_boxes: (B, N, 4), (cx, cy, w, h) relative to each image without its padding. The rest as in
    `AdaMixerDecoderOutput`."""

    loss: Tensor | None = None
    loss_dict: dict[str, Tensor] | None = None
    logits: Tensor | None = None
    pred_boxes: Tensor | None = None
    last_hidden_state: Tensor | None = None
    intermediate_hidden_states: Tensor | None = None
    intermediate_logits: Tensor | None = None
    intermediate_boxes: Tensor | None = None


class AdaMixerPreTrainedModel(SetPredictionPreTrainedModel):
    """What transformers asks of every model of the family."""

    config: AdaMixerConfig
    config_class = AdaMixerConfig
    _no_split_modules = ["ConvBackbone", "AdaMixerDecoderLayer"]  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """A stage comes after the Linears in it and overwrites their general start. (transformers calls this only for modules
        that have parameters of their own, so not for the sampling and mixing inside a stage.)"""
        super()._init_weights(module)
        if isinstance(module, AdaMixerDecoderLayer):
            init.uniform_(module.iof_temperature, 0.0, 4.0)
            class_end: Any = module.class_head[-1]
            box_end: Any = module.box_head[-1]
            init.constant_(class_end.bias, -math.log(99))  # sigmoid 0.01
            init.zeros_(box_end.weight)
            sampling, generator = module.sampling, module.mixing.parameters_of_query
            init.zeros_(sampling.offsets.weight)
            points = sampling.offsets.bias.new_empty(sampling.groups, sampling.points, 3).uniform_(-0.5, 0.5)
            points[..., 2] = -1
            init.copy_(sampling.offsets.bias, points.flatten())
            # all mixing comes from the bias at first; a zero bias would be a dead ReLU behind a norm of zeros
            init.zeros_(generator.weight)
            bound = generator.in_features**-0.5
            init.uniform_(generator.bias, -bound, bound)


class AdaMixerDecoder(AdaMixerPreTrainedModel):
    """The stages. Keyword arguments only, so that a recorded call can be replayed with other queries, any number of them."""

    def __init__(self, config: AdaMixerConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(AdaMixerDecoderLayer(config) for _ in range(config.decoder_layers))
        self.post_init()

    def forward(
        self,
        *,
        inputs_embeds: Tensor,
        reference_points: Tensor,
        encoder_hidden_states: Tensor,
        spatial_shapes_list: list[tuple[int, int]],
        image_sizes: Tensor,
    ) -> AdaMixerDecoderOutput:
        """
        Args:
            inputs_embeds: (B, N, D), the queries' content.
            reference_points: (B, N, 4), the queries' boxes (cx, cy, w, h) relative to each image without its padding.
            encoder_hidden_states: (B, S, D), the cells of all levels, finest level first; zeros where there is padding.
            spatial_shapes_list: (h, w) of every level.
            image_sizes: (B, 2), (height, width) of each image in pixels, without its padding.
        """
        # positions are pixels and their logarithms: half precision would move boxes by several pixels
        image_sizes = image_sizes.float()
        content, position = inputs_embeds, position_of_boxes(reference_points.float(), image_sizes)
        levels = encoder_hidden_states.split([h * w for h, w in spatial_shapes_list], dim=1)
        channels = self.config.d_model // self.config.sampling_groups
        # one copy here, channels split in groups, instead of one in every stage
        maps = [
            level.transpose(1, 2).reshape(-1, channels, *shape).float()
            for level, shape in zip(levels, spatial_shapes_list, strict=True)
        ]
        hidden, logits, boxes = [], [], []
        for layer in self.layers:
            content, layer_logits, position = layer(content, position, *maps)
            hidden.append(content)
            logits.append(layer_logits)
            boxes.append(boxes_of_position(position, image_sizes))
        return AdaMixerDecoderOutput(content, torch.stack(hidden), torch.stack(logits), torch.stack(boxes))


class AdaMixerModel(AdaMixerPreTrainedModel):
    """Backbone, one 1x1 convolution a level, initial queries, decoder.

    Every query starts with the whole image as its box, which is not learned, and with a learned content vector.
    """

    def __init__(self, config: AdaMixerConfig) -> None:
        super().__init__(config)
        self.backbone = ConvBackbone(config)
        channels = self.backbone.channels
        if len(channels) != len(config.feature_strides):
            raise UserError(
                f"the backbone yields {len(channels)} feature maps for {len(config.feature_strides)} feature_strides; "
                "choose as many out_features as strides"
            )
        self.input_projections = nn.ModuleList(nn.Conv2d(width, config.d_model, kernel_size=1) for width in channels)
        self.level_norm = LevelNorm(NORM_GROUPS, config.d_model)
        self.query_content = nn.Embedding(config.num_queries, config.d_model)
        self.decoder = AdaMixerDecoder(config)
        self.post_init()

    @can_return_tuple
    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> AdaMixerDecoderOutput:
        """pixel_values (B, 3, H, W), normalised; pixel_mask (B, H, W), 1 where there is image, which begins at the top left.

        UserError for images smaller than the coarsest stride and for feature maps that do not have `feature_strides`.
        """
        batch, _, height, width = pixel_values.shape
        if pixel_mask is None:
            image_sizes = torch.tensor([[height, width]], dtype=torch.float32, device=pixel_values.device).expand(batch, -1)
        else:
            image_sizes = torch.stack([pixel_mask[:, :, 0].sum(1), pixel_mask[:, 0].sum(1)], 1).float()
        maps = self.backbone(pixel_values, pixel_mask)
        levels, shapes = [], []
        strides = self.config.feature_strides
        for (features, valid), projection, stride in zip(maps, self.input_projections, strides, strict=True):
            shape = tuple(int(side) for side in features.shape[-2:])
            if any(abs(cells * stride - pixels) >= stride for cells, pixels in zip(shape, (height, width), strict=True)):
                raise UserError(
                    f"a feature map of {shape[0]} x {shape[1]} cells for images of {height} x {width} pixels does not have "
                    f"stride {stride}; set feature_strides to the backbone's"
                )
            valid = None if valid is None else valid[:, None]
            levels.append(self.level_norm(projection(features), valid).flatten(2).transpose(1, 2))
            shapes.append(shape)
        content = F.layer_norm(self.query_content.weight, (self.config.d_model,)).expand(batch, -1, -1)
        whole_image = torch.tensor([0.5, 0.5, 1.0, 1.0], device=pixel_values.device)
        return self.decoder(
            inputs_embeds=content,
            reference_points=whole_image.expand(batch, self.config.num_queries, 4),
            encoder_hidden_states=torch.cat(levels, 1),
            spatial_shapes_list=shapes,
            image_sizes=image_sizes,
        )


class AdaMixerForObjectDetection(AdaMixerPreTrainedModel):
    """AdaMixer with its loss: focal 2, L1 5 and GIoU 2 in every stage. Sigmoid head: K columns, none for "no object"."""

    def __init__(self, config: AdaMixerConfig) -> None:
        super().__init__(config)
        self.model = AdaMixerModel(config)
        self.loss_function = focal_set_loss
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values: Tensor, pixel_mask: Tensor | None = None, labels: list[Target] | None = None
    ) -> AdaMixerObjectDetectionOutput:
        """Shapes as in `AdaMixerModel.forward`; one `Target` an image where a loss is wanted."""
        found = self.model(pixel_values, pixel_mask)
        logits, boxes = found.intermediate_logits, found.intermediate_boxes
        loss, terms = None, None
        if labels is not None:
            loss, terms, _ = self.loss_function(logits[-1], labels, logits.device, boxes[-1], self.config, logits, boxes)
        return AdaMixerObjectDetectionOutput(loss=loss, loss_dict=terms, logits=logits[-1], pred_boxes=boxes[-1], **found)


AutoConfig.register(AdaMixerConfig.model_type, AdaMixerConfig)
AutoModel.register(AdaMixerConfig, AdaMixerModel)
AutoModelForObjectDetection.register(AdaMixerConfig, AdaMixerForObjectDetection)
