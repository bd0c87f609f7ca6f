"""The weights that a new DETR, Conditional, DAB or Deformable DETR starts from, as in its authors' code.

transformers draws all of them from a normal of deviation 0.02: the queries are then nearly equal (DAB-DETR's anchors are all in
the middle of the image), attention is nearly uniform, and sigmoid heads begin with every class at 0.5. Trained from there, the
same model needs several times as many steps. The authors' code has

    matrices of encoder and decoder    Xavier-uniform (`_reset_parameters` of their transformer.py)
    queries, DAB-DETR's anchors        normal of deviation 1
    sigmoid class heads                a bias of -log(99): every class begins at 0.01 (Lin et al., ICCV 2017, section 4.1)
    the last layer of their box heads  zero; in Deformable DETR -2 for width and height, but not where boxes are proposed

where sampling offsets, attention weights and class and box heads keep what transformers gives them, if nothing is said here.
"""

import math

import torch
from torch import nn
from transformers import PreTrainedModel

TYPES = ("detr", "conditional_detr", "dab-detr", "deformable_detr")
HEADS = ("bbox_", "class_", "sampling_offsets", "attention_weights")
QUERIES = ("query_position_embeddings", "query_refpoint_embeddings")
BESIDE = ("enc_output", "pos_trans")  # Deformable DETR's, for the queries that its encoder proposes


@torch.no_grad()
def initialise(model: PreTrainedModel) -> None:
    """Draw the weights of a new detector outside its backbone; nothing is done to other families."""
    kind, trunk = model.config.model_type, model.model
    if kind not in TYPES:
        return
    parts = [trunk.encoder, trunk.decoder, *(getattr(trunk, name) for name in BESIDE if hasattr(trunk, name))]
    for part in parts:
        for name, parameter in part.named_parameters():
            if parameter.dim() > 1 and not any(word in name for word in HEADS):
                nn.init.xavier_uniform_(parameter)
    for name in QUERIES:
        if getattr(trunk, name, None) is not None:
            nn.init.normal_(getattr(trunk, name).weight)
    if kind == "detr":
        return
    for head in _each(getattr(model, "class_embed", None) or model.class_labels_classifier):
        nn.init.constant_(head.bias, -math.log(99))
    for number, head in enumerate(_each(getattr(model, "bbox_embed", None) or model.bbox_predictor)):
        nn.init.zeros_(head.layers[-1].weight)
        nn.init.zeros_(head.layers[-1].bias)
        if kind == "deformable_detr" and not model.config.two_stage and (number == 0 or not model.config.with_box_refine):
            nn.init.constant_(head.layers[-1].bias[2:], -2.0)


def _each(heads: nn.Module) -> list[nn.Module]:
    return list(heads) if isinstance(heads, nn.ModuleList) else [heads]
