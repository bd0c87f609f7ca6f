"""A detector from nothing but a file that the papers' authors published: its keys and shapes say which layout it has, its sizes
and its number of classes.

What no shape tells is what the published models have: 8 attention heads, RT-DETR's 300 queries, the size of the images; and, in
the name of the file, "dc5" for DETR's dilated last stage.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import transformers as hf
from torch import Tensor
from transformers import AutoModelForObjectDetection, PreTrainedConfig

from leandetr.detectors.adamixer import AdaMixerConfig
from leandetr.detectors.detector import Detector
from leandetr.detectors.official import fill_official, read_checkpoint
from leandetr.detectors.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from leandetr.detectors.published_classes import published_classes
from leandetr.detectors.smca_detr import SCALES, SmcaDetrConfig
from leandetr.errors import UserError
from leandetr.structures import Preprocessing

SUFFIXES = (".pth", ".pt", ".safetensors")
#: blocks in the four stages, and whether they are bottlenecks -> depth of a ResNet
RESNETS = {
    ((2, 2, 2, 2), False): 18,
    ((3, 4, 6, 3), False): 34,
    ((3, 4, 6, 3), True): 50,
    ((3, 4, 23, 3), True): 101,
    ((3, 8, 36, 3), True): 152,
}
PHOTOGRAPHS = Preprocessing(size=None, shortest_edge=800, longest_edge=1333, mean=IMAGENET_MEAN, std=IMAGENET_STD)
SQUARES = Preprocessing(size=(640, 640))
State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Layout:
    """name: of the detectors. key: one that files of this layout have, and none of the others but those before it in
    `LAYOUTS`. config: from a state dict and the file's name to the model's configuration."""

    name: str
    key: str
    config: Callable[[State, str], PreTrainedConfig]
    preprocessing: Preprocessing


def load_published(file: Path) -> Detector:
    """The detector in a published `.pth` or `.safetensors`, in evaluation mode; its classes are `published_classes`.

    Raises:
        UserError: the file cannot be read or would run code; its keys are of none of `LAYOUTS`; keys are missing, unexpected or
            of other shapes (names the first three); classes that it does not name.
    """
    state = read_checkpoint(file)
    layout = next((layout for layout in LAYOUTS if layout.key in state), None)
    if layout is None:
        raise UserError(
            f"{file} is not a checkpoint of {', '.join(layout.name for layout in LAYOUTS)} as published (its first keys: "
            f"{', '.join(list(state)[:3])}); give a folder that save_pretrained wrote"
        )
    try:
        config = layout.config(state, Path(file).stem)
        model = AutoModelForObjectDetection.from_config(config)
    except (KeyError, ValueError, RuntimeError) as error:
        fault = f"it has no {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
        raise UserError(f"{file}: no {layout.name} can be built from its keys ({fault})") from error
    fill_official(model, state, str(file))
    detector = Detector(model, layout.preprocessing, published_classes(config.num_labels, file))
    return detector.eval()


def _detr(state: State, name: str) -> PreTrainedConfig:
    backbone = _timm_resnet(state, "backbone.0.body.", [4], output_stride=16 if "dc5" in name.lower() else None)
    return hf.DetrConfig(backbone_config=backbone, num_labels=len(state["class_embed.weight"]) - 1, **_transformer(state))


def _smca(state: State, name: str) -> PreTrainedConfig:
    backbone = _timm_resnet(state, "backbone.0.body.", [4])
    sizes = _transformer(state)
    scale = "transformer.decoder.layers.0.point3.weight"
    values = len(state[scale]) // sizes["decoder_attention_heads"] if scale in state else 0
    kind = next(kind for kind, count in SCALES.items() if count == values)
    return SmcaDetrConfig(backbone_config=backbone, num_labels=len(state["class_embed.weight"]), scale=kind, **sizes)


def _transformer(state: State) -> dict[str, int]:
    queries, width = state["query_embed.weight"].shape
    feed_forward = len(state["transformer.decoder.layers.0.linear1.weight"])
    return {
        "d_model": width,
        "num_queries": queries,
        "encoder_layers": _count(state, "transformer.encoder.layers."),
        "decoder_layers": _count(state, "transformer.decoder.layers."),
        "encoder_ffn_dim": feed_forward,
        "decoder_ffn_dim": feed_forward,
        "encoder_attention_heads": 8,
        "decoder_attention_heads": 8,
    }


def _adamixer(state: State, name: str) -> PreTrainedConfig:
    queries, width = state["rpn_head.init_content_features.weight"].shape
    mixing = "roi_head.bbox_head.0.sampling_n_mixing."
    mixed = state[f"{mixing}adaptive_mixing.out_proj.weight"].shape[1] // width
    in_all_groups = len(state[f"{mixing}sampling_offset_generator.0.weight"]) // 3
    generated = len(state[f"{mixing}adaptive_mixing.parameter_generator.0.weight"])
    groups = width**2 // (generated - mixed * in_all_groups)  # a group mixes (width / groups)^2 channels
    levels = _count(state, "neck.lateral_convs.")
    return AdaMixerConfig(
        backbone_config=_timm_resnet(state, "backbone.", list(range(5 - levels, 5))),
        num_labels=len(state["roi_head.bbox_head.0.fc_cls.weight"]),
        d_model=width,
        num_queries=queries,
        decoder_layers=_count(state, "roi_head.bbox_head."),
        decoder_ffn_dim=len(state["roi_head.bbox_head.0.ffn.layers.0.0.weight"]),
        decoder_attention_heads=len(state["roi_head.bbox_head.0.iof_tau"]),
        sampling_groups=groups,
        sampling_points=in_all_groups // groups,
        mixing_points=mixed,
    )


def _rt_detr(state: State, name: str) -> PreTrainedConfig:
    second = any(key.endswith("cross_attn.num_points_scale") for key in state)
    bottleneck = "backbone.res_layers.0.blocks.0.branch2c.conv.weight" in state
    depths = [_count(state, f"backbone.res_layers.{stage}.blocks.") for stage in range(4)]
    widths = [64 * 2**stage * (4 if bottleneck else 1) for stage in range(4)]
    backbone = hf.RTDetrResNetConfig(
        layer_type="bottleneck" if bottleneck else "basic",
        hidden_sizes=widths,
        depths=depths,
        out_features=["stage2", "stage3", "stage4"],
    )
    width, inner = state["decoder.enc_score_head.weight"].shape[1], state["encoder.fpn_blocks.0.conv1.conv.weight"]
    layer = "encoder.encoder.0.layers.0.linear1.weight"
    encoder_width = state[layer].shape[1]
    config = hf.RTDetrV2Config if second else hf.RTDetrConfig
    return config(
        backbone_config=backbone,
        encoder_in_channels=widths[1:],
        num_labels=len(state["decoder.enc_score_head.weight"]),
        d_model=width,
        decoder_in_channels=[encoder_width] * 3,
        encoder_hidden_dim=encoder_width,
        encoder_ffn_dim=len(state[layer]),
        decoder_ffn_dim=len(state["decoder.decoder.layers.0.linear1.weight"]),
        decoder_layers=_count(state, "decoder.decoder.layers."),
        hidden_expansion=len(inner) / encoder_width,
    )


def _timm_resnet(state: State, prefix: str, out_indices: list[int], output_stride: int | None = None) -> PreTrainedConfig:
    blocks = tuple(_count(state, f"{prefix}layer{stage}.") for stage in range(1, 5))
    bottleneck = f"{prefix}layer1.0.conv3.weight" in state
    depth = RESNETS.get((blocks, bottleneck))
    if depth is None:
        raise ValueError(f"its backbone has {blocks} blocks, which is no ResNet of {sorted(RESNETS.values())}")
    dilated = {} if output_stride is None else {"output_stride": output_stride}
    return hf.TimmBackboneConfig(
        backbone=f"resnet{depth}", out_indices=out_indices, freeze_batch_norm_2d=True, use_pretrained_backbone=False, **dilated
    )


def _count(state: State, prefix: str) -> int:
    """How many different numbers follow the prefix."""
    return len({found[1] for key in state if (found := re.match(re.escape(prefix) + r"(\d+)\.", key))})


LAYOUTS = (
    Layout("SMCA-DETR", "transformer.decoder.layers.0.point1.layers.0.weight", _smca, PHOTOGRAPHS),
    Layout("DETR", "transformer.decoder.layers.0.multihead_attn.in_proj_weight", _detr, PHOTOGRAPHS),
    Layout("AdaMixer", "rpn_head.init_content_features.weight", _adamixer, PHOTOGRAPHS),
    Layout("RT-DETR", "decoder.enc_score_head.weight", _rt_detr, SQUARES),
)
