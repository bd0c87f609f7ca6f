"""Checkpoints as the papers' authors published them: a file in their own layout fills a transformers model.

| model type | published layout | source |
|---|---|---|
| detr | `detr-r50`: backbone.0.body, transformer, query_embed, class_embed | facebookresearch/detr |
| smca_detr | as detr, with point1 to point3 and norm4 | gaopengcuhk/SMCA-DETR |
| adamixer | MMDetection 2: backbone, neck, rpn_head, roi_head.bbox_head | MCG-NJU/AdaMixer |
| rt_detr, rt_detr_v2 | backbone, encoder, decoder; weights of the "ema" first | lyuwenyu/RT-DETR |

A map is a list of (pattern, replacement) applied in order to every key. It is checked from both ends: each tensor of the file
must have a place in the model, of the same shape, and each weight of the model must come from the file. The backbone is timm's
ResNet, whose names are torchvision's and the papers', or RT-DETR's own.
"""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from leandetr.errors import UserError, unknown

Rules = tuple[tuple[str, str], ...]

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

DETR: Rules = (
    (r"^backbone\.0\.body\.", "model.backbone.model."),
    (r"^transformer\.decoder\.norm\.", "model.decoder.layernorm."),
    (r"^transformer\.", "model."),
    (r"^input_proj\.", "model.input_projection."),
    (r"^query_embed\.", "model.query_position_embeddings."),
    (r"^class_embed\.", "class_labels_classifier."),
    (r"^bbox_embed\.", "bbox_predictor."),
    *LAYERS,
)

SMCA: Rules = (
    (r"^transformer\.decoder\.layers\.0\.point1\.", "model.decoder.reference_predictor."),
    (r"\.point2\.", ".offset."),
    (r"\.point3\.", ".scale."),
    (r"\.norm4\.", ".query_norm."),
    *DETR,
)

ADAMIXER: Rules = (
    (r"^backbone\.", "model.backbone.model."),
    (r"^neck\.lateral_convs\.(\d+)\.conv\.", r"model.input_projections.\1."),
    (r"^neck\.gn_out\.", "model.level_norm."),
    (r"^rpn_head\.init_content_features\.", "model.query_content."),
    (r"^roi_head\.bbox_head\.", "model.decoder.layers."),
    (r"\.attention\.attn\.out_proj\.", ".self_attn.o_proj."),
    (r"\.attention\.attn\.", ".self_attn."),
    (r"\.attention_norm\.", ".self_attn_layer_norm."),
    (r"\.iof_tau$", ".iof_temperature"),
    (r"\.sampling_n_mixing\.sampling_offset_generator\.0\.", ".sampling.offsets."),
    (r"\.sampling_n_mixing\.adaptive_mixing\.parameter_generator\.0\.", ".mixing.parameters_of_query."),
    (r"\.sampling_n_mixing\.adaptive_mixing\.out_proj\.", ".mixing.output."),
    (r"\.sampling_n_mixing\.norm\.", ".mixing_layer_norm."),
    (r"\.ffn\.layers\.0\.0\.", ".fc1."),
    (r"\.ffn\.layers\.1\.", ".fc2."),
    (r"\.ffn_norm\.", ".final_layer_norm."),
    (r"\.cls_fcs\.", ".class_head."),
    (r"\.fc_cls\.", ".class_head.3."),
    (r"\.reg_fcs\.", ".box_head."),
    (r"\.fc_reg\.", ".box_head.3."),
)

_RESNET_VD = "model.backbone.model.encoder.stages."
RT_DETR: Rules = (
    # "conv1_1" to "conv1_3" of the stem count from one
    (r"^backbone\.conv1\.conv1_1\.", "model.backbone.model.embedder.embedder.0."),
    (r"^backbone\.conv1\.conv1_2\.", "model.backbone.model.embedder.embedder.1."),
    (r"^backbone\.conv1\.conv1_3\.", "model.backbone.model.embedder.embedder.2."),
    (r"^backbone\.res_layers\.(\d+)\.blocks\.(\d+)\.", _RESNET_VD + r"\1.layers.\2."),
    (r"\.branch2a\.", ".layer.0."),
    (r"\.branch2b\.", ".layer.1."),
    (r"\.branch2c\.", ".layer.2."),
    (r"\.short\.conv\.(conv|norm)\.", r".shortcut.1.\1."),  # behind the average pooling of stages that halve the map
    (r"\.short\.(conv|norm)\.", r".shortcut.\1."),
    (r"^(model\.backbone\..*)\.conv\.", r"\1.convolution."),
    (r"^(model\.backbone\..*)\.norm\.", r"\1.normalization."),
    (r"^encoder\.input_proj\.(\d+)\.conv\.", r"model.encoder_input_proj.\1.0."),  # RT-DETRv2 names what RT-DETR numbers
    (r"^encoder\.input_proj\.(\d+)\.norm\.", r"model.encoder_input_proj.\1.1."),
    (r"^encoder\.input_proj\.", "model.encoder_input_proj."),
    (r"^encoder\.encoder\.", "model.encoder.aifi."),
    (r"^encoder\.", "model.encoder."),
    (r"^decoder\.input_proj\.(\d+)\.conv\.", r"model.decoder_input_proj.\1.0."),
    (r"^decoder\.input_proj\.(\d+)\.norm\.", r"model.decoder_input_proj.\1.1."),
    (r"^decoder\.(denoising_class_embed|enc_score_head|enc_bbox_head)\.", r"model.\1."),
    (r"^decoder\.enc_output\.(0|proj)\.", "model.enc_output.0."),
    (r"^decoder\.enc_output\.(1|norm)\.", "model.enc_output.1."),
    (r"^decoder\.tgt_embed\.", "model.weight_embedding."),
    (r"^decoder\.query_pos_head\.", "model.decoder.query_pos_head."),
    (r"^decoder\.dec_score_head\.", "model.decoder.class_embed."),
    (r"^decoder\.dec_bbox_head\.", "model.decoder.bbox_embed."),
    (r"^decoder\.decoder\.", "model.decoder."),
    (r"\.num_points_scale$", ".n_points_scale"),
    *LAYERS,
)

MAPS: dict[str, Rules] = {"detr": DETR, "smca_detr": SMCA, "adamixer": ADAMIXER, "rt_detr": RT_DETR, "rt_detr_v2": RT_DETR}

#: in the files but no weights: counters, AdaMixer's whole-image boxes (never learned), RT-DETR's anchors (of one image size)
NO_WEIGHTS = re.compile(r"num_batches_tracked$|^rpn_head\.init_proposal_bboxes\.|^decoder\.(anchors|valid_mask)$")


def load_official(model: PreTrainedModel, checkpoint: Path) -> None:
    """Fill a model from a published file.

    Args:
        model: built with the file's own sizes and number of classes: DETR-R50 on COCO has `num_labels=91`, SMCA-DETR 92,
            AdaMixer and RT-DETR 80.
        checkpoint: `.safetensors`, or a pickle (`.pth`, `.pt`), of which nothing but tensors and plain values is read.

    Raises:
        UserError: the file cannot be read or would run code; the model type has no published layout here; keys are missing,
            unexpected or of other shapes (names the first three).
    """
    fill_official(model, read_checkpoint(checkpoint), str(checkpoint))


def fill_official(model: PreTrainedModel, published: Mapping[str, Tensor], source: str) -> None:
    """`load_official` on a state dict at hand; source names it in errors."""
    if model.config.model_type not in MAPS:
        raise unknown("official checkpoint layout", model.config.model_type, MAPS)
    weights = _rename(published, MAPS[model.config.model_type])
    own = model.state_dict(keep_vars=True)
    given = {id(own[key]) for key in weights if key in own}  # a tied weight has several keys, and one of them is enough
    missing = [key for key, value in own.items() if id(value) not in given and not NO_WEIGHTS.search(key)]
    unexpected = [name for key, (name, _) in weights.items() if key not in own]
    shapes = [
        f"{name} {tuple(value.shape)} where the model has {tuple(own[key].shape)}"
        for key, (name, value) in weights.items()
        if key in own and value.shape != own[key].shape
    ]
    faults = [
        f"{len(keys)} {kind} ({', '.join(keys[:3])})"
        for kind, keys in (("missing", missing), ("unexpected", unexpected), ("of other shapes", shapes))
        if keys
    ]
    if faults:
        raise UserError(
            f"{source} does not fit this {model.config.model_type}: {'; '.join(faults)}; "
            "set the backbone, sizes and number of classes of the checkpoint"
        )
    model.load_state_dict({key: value for key, (_, value) in weights.items()}, strict=False)


def _rename(published: Mapping[str, Tensor], rules: Rules) -> dict[str, tuple[str, Tensor]]:
    """Published state dict -> {the model's key: (published key, tensor)}; fused projections are split in three."""
    renamed = {}
    for name, value in published.items():
        if NO_WEIGHTS.search(name):
            continue
        key = name
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        prefix, fused, kind = key.partition("in_proj_")
        if fused:
            for projection, part in zip("qkv", value.chunk(3), strict=True):
                renamed[f"{prefix}{projection}_proj.{kind}"] = name, part
        else:
            renamed[key] = name, value
    return renamed


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The state dict inside a published file: the averaged weights where there are any, else "model" or "state_dict".

    Raises UserError for a missing or damaged file, a pickle that holds more than tensors and plain values, and a file in which
    no state dict is found.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; name an existing checkpoint")
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            # the authors' training scripts also store their arguments, which are plain values in a Namespace
            with torch.serialization.safe_globals([argparse.Namespace]):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is damaged or holds Python objects besides tensors, which can run code when they are read; "
            "save its state dict alone, with safetensors.torch.save_file"
        ) from error
    except (OSError, RuntimeError, EOFError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read as a checkpoint; it may be truncated, download it again") from error
    for keys in (("ema", "module"), ("model",), ("state_dict",)):
        content = _inside(content, keys)
    if not isinstance(content, Mapping) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path} holds no state dict; save one, or a dict with it under 'model' or 'state_dict'")
    return {name.removeprefix("module."): value for name, value in content.items()}


def _inside(content: object, keys: tuple[str, ...]) -> object:
    """What nested mappings hold under `keys`; the content itself where they do not."""
    found = content
    for key in keys:
        if not isinstance(found, Mapping) or not isinstance(found.get(key), Mapping):
            return content
        found = found[key]
    return found
