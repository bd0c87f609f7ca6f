"""The layout of the files that a family's authors published: how to know one, the model that fits it, and what its keys are
called here.

What no shape tells is what the published models have: 8 attention heads, RT-DETR's 300 queries, the size of the images; and, in
the name of the file, "dc5" for DETR's dilated last stage.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig

from leandetr.detectors.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from leandetr.structures import Preprocessing

#: (pattern, replacement), applied in order to every key of a file
Rules = tuple[tuple[str, str], ...]
State = Mapping[str, Tensor]

PHOTOGRAPHS = Preprocessing(size=None, shortest_edge=800, longest_edge=1333, mean=IMAGENET_MEAN, std=IMAGENET_STD)
SQUARES = Preprocessing(size=(640, 640))
#: torch.nn.Transformer's names inside a layer -> transformers'
LAYERS: Rules = (
    (r"(encoder\..*layers\.\d+)\.norm2\.", r"\1.final_layer_norm."),
    (r"(decoder\.layers\.\d+)\.norm2\.", r"\1.encoder_attn_layer_norm."),
    (r"(layers\.\d+)\.norm1\.", r"\1.self_attn_layer_norm."),
    (r"(layers\.\d+)\.norm3\.", r"\1.final_layer_norm."),
    (r"(layers\.\d+)\.linear([12])\.", r"\1.mlp.fc\2."),
    (r"(layers\.\d+)\.(multihead_attn|cross_attn)\.", r"\1.encoder_attn."),
    (r"_attn\.out_proj\.", "_attn.o_proj."),
)
#: blocks in the four stages, and whether they are bottlenecks -> depth of a ResNet
RESNETS: dict[tuple[tuple[int, ...], bool], int] = {
    ((2, 2, 2, 2), False): 18,
    ((3, 4, 6, 3), False): 34,
    ((3, 4, 6, 3), True): 50,
    ((3, 4, 23, 3), True): 101,
    ((3, 8, 36, 3), True): 152,
}


@dataclass(frozen=True)
class Layout:
    """name: of the detectors. key: one that files of this layout have, and of the others at most those of the families that it
    descends from. rules: from the file's keys to the model's. config: from a state dict and the file's name to the model's
    configuration. no_weights: pattern of keys that hold none."""

    name: str
    key: str
    rules: Rules
    config: Callable[[State, str], PreTrainedConfig]
    preprocessing: Preprocessing
    no_weights: str = "num_batches_tracked$"


def sizes_of_transformer(state: State) -> dict[str, Any]:
    """Configuration values of a `torch.nn.Transformer` with learned queries."""
    queries, width = state["query_embed.weight"].shape
    feed_forward = len(state["transformer.decoder.layers.0.linear1.weight"])
    return {
        "d_model": width,
        "num_queries": queries,
        "encoder_layers": numbers_after(state, "transformer.encoder.layers."),
        "decoder_layers": numbers_after(state, "transformer.decoder.layers."),
        "encoder_ffn_dim": feed_forward,
        "decoder_ffn_dim": feed_forward,
        "encoder_attention_heads": 8,
        "decoder_attention_heads": 8,
    }


def timm_resnet(state: State, prefix: str, out_indices: list[int], output_stride: int | None = None) -> PreTrainedConfig:
    """timm's ResNet, whose names are torchvision's and the papers'. ValueError where its blocks are no ResNet's."""
    blocks = tuple(numbers_after(state, f"{prefix}layer{stage}.") for stage in range(1, 5))
    bottleneck = f"{prefix}layer1.0.conv3.weight" in state
    depth = RESNETS.get((blocks, bottleneck))
    if depth is None:
        raise ValueError(f"its backbone has {blocks} blocks, which is no ResNet of {sorted(RESNETS.values())}")
    dilated = {} if output_stride is None else {"output_stride": output_stride}
    return AutoConfig.for_model(
        "timm_backbone",
        backbone=f"resnet{depth}",
        out_indices=out_indices,
        freeze_batch_norm_2d=True,
        use_pretrained_backbone=False,
        **dilated,
    )


def numbers_after(state: State, prefix: str) -> int:
    """How many different numbers follow the prefix."""
    return len({found[1] for key in state if (found := re.match(re.escape(prefix) + r"(\d+)\.", key))})
