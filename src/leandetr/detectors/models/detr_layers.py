"""What SwinDETR, SMCA-DETR and, in part, AdaMixer share with DETR (Carion et al., ECCV 2020): configuration, encoder, decoder,
heads and set loss.

The encoder and decoder layers are transformers' own. Written anew are the loops over them; the decoder's because
transformers' returns the state after every layer only when told so by `auxiliary_loss`, and then also feeds the normalised
state into the next layer, which is another function.

To ONNX these models are exported under `torch.no_grad()`: with gradients, the attention that is traced is laid out otherwise in
memory than the one that is decomposed.

Shapes use B images, N queries, L decoder layers, S tokens, D = `d_model` channels, C class columns, K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers import DetrConfig, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.loss.loss_deformable_detr import DeformableDetrForObjectDetectionLoss
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.detr.modeling_detr import DetrDecoderLayer, DetrEncoderLayer, DetrMLPPredictionHead
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from leandetr.structures import Target

#: a set loss, its parts by name, and the outputs of the auxiliary layers
SetLoss = tuple[Tensor, dict[str, Tensor], Any]


class SetLossConfig(PreTrainedConfig):
    """class_cost, bbox_cost, giou_cost: weights of the Hungarian matching; the three *_loss_coefficient: weights of the loss.
    auxiliary_loss: the loss is taken over all decoder layers, each matched by itself; it changes no output."""

    auxiliary_loss: bool = True
    class_cost: float = 1
    bbox_cost: float = 5
    giou_cost: float = 2
    class_loss_coefficient: float = 1
    bbox_loss_coefficient: float = 5
    giou_loss_coefficient: float = 2

    if TYPE_CHECKING:  # a property of transformers', which its constructor takes as well
        num_labels: int = 2


class SetPredictionConfig(SetLossConfig):
    """What every DETR with a dense encoder is configured by.

    num_queries: object queries N. d_model: width D, divisible by four and by the numbers of heads.
    """

    attribute_map = {"hidden_size": "d_model", "num_attention_heads": "encoder_attention_heads"}  # noqa: RUF012 (transformers' own)

    backbone_config: dict | PreTrainedConfig | None = None
    num_queries: int = 100
    d_model: int = 256
    encoder_layers: int = 6
    encoder_ffn_dim: int = 2048
    encoder_attention_heads: int = 8
    decoder_layers: int = 6
    decoder_ffn_dim: int = 2048
    decoder_attention_heads: int = 8
    activation_function: str = "relu"
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0


@dataclass
class DecoderOutput(ModelOutput):
    """last_hidden_state (B, N, D) and intermediate_hidden_states (L, B, N, D), both after the decoder's final norm.
    reference_logits (B, N, 2): what the heads add to the box centres before the sigmoid, where a family has such a thing."""

    last_hidden_state: Tensor | None = None
    intermediate_hidden_states: Tensor | None = None
    reference_logits: Tensor | None = None


@dataclass
class TrunkOutput(DecoderOutput):
    """The decoder's output and encoder_last_hidden_state (B, S, D)."""

    encoder_last_hidden_state: Tensor | None = None


@dataclass
class DetectionOutput(ModelOutput):
    """logits (B, N, C) and pred_boxes (B, N, 4), (cx, cy, w, h) in [0, 1] of the image without its padding: the last layer's.
    intermediate_logits (L, B, N, C), intermediate_boxes (L, B, N, 4), intermediate_hidden_states (L, B, N, D): every layer's.
    loss and its parts in loss_dict, when labels were given."""

    loss: Tensor | None = None
    loss_dict: dict[str, Tensor] | None = None
    logits: Tensor | None = None
    pred_boxes: Tensor | None = None
    intermediate_logits: Tensor | None = None
    intermediate_boxes: Tensor | None = None
    last_hidden_state: Tensor | None = None
    intermediate_hidden_states: Tensor | None = None
    encoder_last_hidden_state: Tensor | None = None


class SetPredictionPreTrainedModel(PreTrainedModel):
    """DETR's initialisation: Xavier-uniform matrices, zero biases, unit-normal embeddings. transformers' default, a normal of
    deviation 0.02, makes all queries nearly equal at the start."""

    config: SetLossConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ["image"]  # noqa: RUF012
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            init.xavier_uniform_(module.weight)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight)


class Encoder(SetPredictionPreTrainedModel):
    """DETR's encoder."""

    def __init__(self, config: SetPredictionConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(DetrEncoderLayer(cast(DetrConfig, config)) for _ in range(config.encoder_layers))
        self.post_init()

    def forward(
        self, *, inputs_embeds: Tensor, attention_mask: Tensor | None, spatial_position_embeddings: Tensor
    ) -> BaseModelOutput:
        """Tokens and their positions (B, S, D), mask (B, S) true where there is image or None."""
        mask = create_bidirectional_mask(config=self.config, inputs_embeds=inputs_embeds, attention_mask=attention_mask)
        hidden_states = inputs_embeds
        for layer in self.layers:
            hidden_states = layer(hidden_states, mask, spatial_position_embeddings)
        return BaseModelOutput(last_hidden_state=hidden_states)


class Decoder(SetPredictionPreTrainedModel):
    """DETR's decoder, which always returns the state after every layer.

    Its keyword arguments name everything it reads, and none of them depends on the number of queries: a recorded call can be
    replayed with other queries.
    """

    layer_class: type[nn.Module] = DetrDecoderLayer

    def __init__(self, config: SetPredictionConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(self.layer_class(config) for _ in range(config.decoder_layers))
        self.layernorm = nn.LayerNorm(config.d_model)
        self.post_init()

    def forward(
        self,
        *,
        inputs_embeds: Tensor,
        object_queries_position_embeddings: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor | None,
        spatial_position_embeddings: Tensor,
        spatial_shapes_list: list[tuple[int, int]],
    ) -> DecoderOutput:
        """Queries and their positions (B, N, D), memory and its positions (B, S, D), mask (B, S) true where there is image or
        None. spatial_shapes_list: the (h, w) of the levels that make up the memory, for whoever records the call and wants its
        maps back; dense attention has no use for it."""
        mask = create_bidirectional_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=encoder_attention_mask,
            encoder_hidden_states=encoder_hidden_states,
        )
        return self.through_layers(
            inputs_embeds, spatial_position_embeddings, object_queries_position_embeddings, encoder_hidden_states, mask
        )

    def through_layers(self, hidden_states: Tensor, *arguments: Any) -> DecoderOutput:
        """`arguments` follow the self-attention mask of a layer; by position, so that gradient checkpointing sees them."""
        states = []
        for layer in self.layers:
            hidden_states = layer(hidden_states, None, *arguments)
            states.append(self.layernorm(hidden_states))
        stacked = torch.stack(states)
        return DecoderOutput(last_hidden_state=stacked[-1], intermediate_hidden_states=stacked)


class SetPredictionModel(SetPredictionPreTrainedModel):
    """Class and box heads on every layer of a trunk, and DETR's set loss over all of them.

    Args:
        config: its configuration.
        trunk: backbone, encoder and decoder; returns a `TrunkOutput`.
        columns: class columns C, K + 1 for a softmax head and K for a sigmoid head.

    The matching runs on the host (scipy): under `torch.compile` everything but the loss is compiled.
    """

    _focal = False

    def __init__(self, config: SetPredictionConfig, trunk: PreTrainedModel, columns: int) -> None:
        super().__init__(config)
        self.model = trunk
        self.class_labels_classifier = nn.Linear(config.d_model, columns)
        self.bbox_predictor = DetrMLPPredictionHead(config.d_model, config.d_model, 4, num_layers=3)
        self.loss_function = focal_set_loss if self._focal else softmax_set_loss
        self.post_init()

    def heads(self, hidden: Tensor, reference_logits: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """hidden (..., B, N, D), reference_logits (B, N, 2) -> logits (..., B, N, C), boxes (..., B, N, 4)."""
        raw = self.bbox_predictor(hidden)
        if reference_logits is not None:
            raw = torch.cat([raw[..., :2] + reference_logits, raw[..., 2:]], dim=-1)
        return self.class_labels_classifier(hidden), raw.sigmoid()

    @can_return_tuple
    def forward(
        self, pixel_values: Tensor, pixel_mask: Tensor | None = None, labels: list[Target] | None = None
    ) -> DetectionOutput:
        """pixel_values (B, 3, H, W), pixel_mask (B, H, W) with 1 where there is image, the labels of the B images.

        Raises UserError for images smaller than the coarsest stride.
        """
        trunk = self.model(pixel_values, pixel_mask)
        logits, boxes = self.heads(trunk.intermediate_hidden_states, trunk.reference_logits)
        loss = loss_dict = None
        if labels is not None:
            loss, loss_dict, _ = self.loss_function(logits[-1], labels, logits.device, boxes[-1], self.config, logits, boxes)
        return DetectionOutput(
            loss=loss,
            loss_dict=loss_dict,
            logits=logits[-1],
            pred_boxes=boxes[-1],
            intermediate_logits=logits,
            intermediate_boxes=boxes,
            last_hidden_state=trunk.last_hidden_state,
            intermediate_hidden_states=trunk.intermediate_hidden_states,
            encoder_last_hidden_state=trunk.encoder_last_hidden_state,
        )


@torch.compiler.disable
def softmax_set_loss(
    logits: Tensor,
    labels: list[Target],
    device: torch.device,
    pred_boxes: Tensor,
    config: SetLossConfig,
    outputs_class: Tensor,
    outputs_coord: Tensor,
) -> SetLoss:
    """DETR's loss: cross-entropy over K + 1 columns, L1 and GIoU of the matched boxes. Signature of transformers' losses."""
    return _weighted(ForObjectDetectionLoss, logits, labels, device, pred_boxes, config, outputs_class, outputs_coord)


@torch.compiler.disable
def focal_set_loss(
    logits: Tensor,
    labels: list[Target],
    device: torch.device,
    pred_boxes: Tensor,
    config: SetLossConfig,
    outputs_class: Tensor,
    outputs_coord: Tensor,
) -> SetLoss:
    """The loss of the sigmoid-headed DETRs: focal, L1 and GIoU. Signature of transformers' losses."""
    return _weighted(
        DeformableDetrForObjectDetectionLoss, logits, labels, device, pred_boxes, config, outputs_class, outputs_coord
    )


def _weighted(
    compute: Callable[..., SetLoss],
    logits: Tensor,
    labels: list[Target],
    device: torch.device,
    pred_boxes: Tensor,
    config: SetLossConfig,
    outputs_class: Tensor,
    outputs_coord: Tensor,
) -> SetLoss:
    """transformers computes the parts; its own sum ignores `class_loss_coefficient` and would count the focal loss once, where
    the papers count it twice. In float32 also under autocast, where box corners would be rounded out of order."""
    _, parts, auxiliary = compute(
        logits.float(), labels, device, pred_boxes.float(), config, outputs_class.float(), outputs_coord.float()
    )
    weights = {
        "loss_ce": config.class_loss_coefficient,
        "loss_bbox": config.bbox_loss_coefficient,
        "loss_giou": config.giou_loss_coefficient,
    }
    # "loss_bbox" is the last layer's part, "loss_bbox_0" the first's; "cardinality_error" is no loss.
    kinds = {name: name.rstrip("0123456789").rstrip("_") for name in parts}
    loss = sum(weights[kind] * parts[name] for name, kind in kinds.items() if kind in weights)
    return cast(Tensor, loss), parts, auxiliary
