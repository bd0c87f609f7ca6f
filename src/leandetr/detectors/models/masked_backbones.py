"""Backbones whose features of an image do not depend on how far the batch pads it.

Zeros around an image do not stay zeros inside a network: biases and norms make something of them, the next convolution or
attention window mixes that into the cells at the image's border, and an image gives other features alone than beside a larger
one. Here padded cells are removed wherever a layer could read them. Batches without padding take the plain path.

Shapes use B images of (H, W) pixels, maps of (h, w) cells with h = ceil(H / stride).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, SwinConfig
from transformers.backbone_utils import load_backbone
from transformers.models.detr.modeling_detr import replace_batch_norm
from transformers.models.swin.modeling_swin import SwinAttention, SwinBackbone, SwinLayer
from transformers.utils.import_utils import is_tracing

from leandetr.errors import UserError

# What padded keys get added to their attention logits: exp of it is zero in every float type, and it is finite in every one,
# so that windows without a single valid key stay finite too.
PADDED = -1e4


def feature_stride(image: Sequence[int], cells: Sequence[int]) -> int:
    """The stride of a feature map: the power of two that makes (h, w) = ceil((H, W) / stride).

    >>> feature_stride((800, 1066), (25, 34)), feature_stride((800, 1066), (50, 67))
    (32, 16)
    """
    stride = 1
    while any(-(-pixels // stride) > n for pixels, n in zip(image, cells)):
        stride *= 2
    return stride


def valid_cells(mask: Tensor, stride: int) -> Tensor:
    """(B, H, W) bool pixels -> (B, h, w) bool cells: those that the image alone, without its padding, would have."""
    return mask[:, ::stride, ::stride]


def padding_of(pixel_mask: Tensor | None) -> Tensor | None:
    """(B, H, W) bool, or None where nothing is padded (which a traced graph cannot know)."""
    if pixel_mask is None or (not is_tracing(pixel_mask) and bool(pixel_mask.all())):
        return None
    return pixel_mask.bool()


def check_size(image: Sequence[int], stride: int) -> None:
    """Raises UserError for images smaller than one cell of the coarsest map."""
    if min(image) < stride:
        raise UserError(
            f"image of {image[0]} x {image[1]} pixels is smaller than the coarsest stride {stride}; "
            f"give at least {stride} x {stride}"
        )


class ZeroPadding:
    """A forward pre-hook of convolutions and pooling layers: zeroes the padded cells of what they read.

    `mask` is the current batch's, (B, H, W) bool or None. A max-pooling layer reads zeros as it reads its own padding as long
    as a rectifier comes before it, as in every ResNet.
    """

    mask: Tensor | None = None

    def __call__(self, _module: nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor] | None:
        if self.mask is None:
            return None
        features = arguments[0]
        stride = feature_stride(self.mask.shape[-2:], features.shape[-2:])
        return (features * valid_cells(self.mask, stride)[:, None].to(features.dtype),)


class ConvBackbone(nn.Module):
    """A convolutional backbone of timm or transformers.

    Independent of padding for networks of convolutions with symmetric padding, norms with fixed statistics and max-pooling;
    squeeze-and-excitation and other poolings over the whole map see the padding.

    A timm backbone's norms are frozen where its configuration says `freeze_batch_norm_2d`; transformers' own are frozen here,
    because batches of detectors are too small for statistics. Everything else can be trained.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        backbone = load_backbone(config)
        self.channels = backbone.channels
        if config.backbone_config.model_type != "timm_backbone":
            with torch.no_grad():
                replace_batch_norm(backbone)
        self.model = getattr(backbone, "_backbone", backbone)  # timm's own module, as in transformers' DETR
        self.zero_padding = ZeroPadding()
        for module in self.model.modules():
            wide = isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1)
            if wide or isinstance(module, nn.MaxPool2d):
                module.register_forward_pre_hook(self.zero_padding)

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None) -> list[tuple[Tensor, Tensor | None]]:
        """(B, 3, H, W), (B, H, W) -> a map (B, channels, h, w) and its valid cells (B, h, w), None without padding, a stage."""
        padding = self.zero_padding.mask = padding_of(pixel_mask)
        maps = self.model(pixel_values)
        maps = maps if isinstance(maps, (list, tuple)) else maps.feature_maps
        image = pixel_values.shape[-2:]
        strides = [feature_stride(image, m.shape[-2:]) for m in maps]
        check_size(image, max(strides))
        return [(m, None if padding is None else valid_cells(padding, s)) for m, s in zip(maps, strides)]


class MaskedSwinAttention(SwinAttention):
    """Window attention that can leave out keys."""

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, *, keys: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """hidden_states (B * windows, tokens, channels), attention_mask (windows, tokens, tokens) of shifted windows or None,
        keys (b * windows, 1, tokens) added to the logits, b = B or 1."""
        if keys is not None:
            tokens = keys.shape[-1]
            shifts = 0 if attention_mask is None else attention_mask.repeat(keys.shape[0] // attention_mask.shape[0], 1, 1)
            attention_mask = keys.expand(-1, tokens, -1) + shifts
        return super().forward(hidden_states, attention_mask, **kwargs)


class MaskedSwinLayer(SwinLayer):
    """A Swin block in which padded tokens are no keys, and are zero afterwards: patch merging reads them as it reads its own
    padding. A window's own filling up to the window size counts as padding too."""

    def __init__(self, config: SwinConfig, like: SwinLayer, stage: int) -> None:
        dim, heads = like.layernorm_before.normalized_shape[0], like.attention.num_attention_heads
        super().__init__(config, dim, like.input_resolution, heads, getattr(like.drop_path, "drop_prob", 0.0), like.shift_size)
        self.attention = MaskedSwinAttention(config, dim, heads, config.window_size)
        self.stage = stage

    def forward(
        self,
        hidden_states: Tensor,
        input_dimensions: tuple[int, int],
        always_partition: bool = False,
        token_masks: list[Tensor] | None = None,
        **kwargs: Any,
    ) -> Any:
        """hidden_states (B, h * w, channels), token_masks (B or 1, h, w) bool, one a stage, or None -> hidden states and
        attention weights, whatever the annotation of `SwinLayer` says."""
        if token_masks is None:
            return super().forward(hidden_states, input_dimensions, always_partition, **kwargs)
        mask = token_masks[self.stage]
        kwargs["keys"] = self.window_keys(mask, hidden_states.dtype)
        hidden_states, weights = super().forward(hidden_states, input_dimensions, always_partition, **kwargs)
        return hidden_states * mask.flatten(1)[..., None].to(hidden_states.dtype), weights

    def window_keys(self, mask: Tensor, dtype: torch.dtype) -> Tensor:
        """(b, h, w) bool -> (b * windows, 1, window * window): 0 for valid keys, `PADDED` for others, in the order of the
        layer's shifted windows."""
        window = self.window_size
        height, width = mask.shape[-2:]
        bias = torch.where(mask, 0.0, PADDED).to(dtype)
        bias = F.pad(bias, (0, -width % window, 0, -height % window), value=PADDED)
        bias = bias.roll((-self.shift_size, -self.shift_size), dims=(1, 2))
        windows = bias.unflatten(2, (-1, window)).unflatten(1, (-1, window)).transpose(2, 3)
        return windows.reshape(-1, 1, window * window)


class MaskedSwin(nn.Module):
    """Swin (Liu et al., ICCV 2021) without its class head, at any image size.

    Without padding, and where all windows are full, it is transformers' Swin exactly.
    """

    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        self.config = config
        self.model = SwinBackbone(config)
        swin: Any = self.model.swin
        swin.layernorm = nn.Identity()  # belongs to the class head: its weights would never see a gradient
        for number, stage in enumerate(swin.encoder.layers):
            stage.blocks = nn.ModuleList(MaskedSwinLayer(config, block, number) for block in stage.blocks)

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None) -> list[tuple[Tensor, Tensor | None]]:
        """(B, 3, H, W), (B, H, W) -> a map (B, channels, h, w) and its valid cells (B, h, w), None without padding, for every
        stage in the configuration's `out_features`."""
        padding, image = padding_of(pixel_mask), pixel_values.shape[-2:]
        strides = [self.config.patch_size * 2**number for number in range(len(self.config.depths))]
        chosen = [self.config.stage_names.index(name) - 1 for name in self.config.out_features]
        check_size(image, strides[-1])
        if padding is not None:
            pixel_values = pixel_values * padding[:, None].to(pixel_values.dtype)
        full = all(-(-side // stride) % self.config.window_size == 0 for side in image for stride in strides)
        masks = None
        if padding is not None or not full:
            pixels = pixel_values.new_ones(1, *image, dtype=torch.bool) if padding is None else padding
            masks = [valid_cells(pixels, stride) for stride in strides]
        maps = self.model(pixel_values, token_masks=masks).feature_maps
        return [(m, None if padding is None or masks is None else masks[number]) for m, number in zip(maps, chosen)]
