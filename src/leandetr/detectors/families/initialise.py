"""The weights that a new DETR, Conditional, DAB or Deformable DETR starts from, as in its authors' code.

transformers draws all of them from a normal of deviation 0.02: the queries are then nearly equal (DAB-DETR's anchors are all in
the middle of the image), attention is nearly uniform, and sigmoid heads begin with every class at 0.5. Trained from there, the
same model needs several times as many steps. The authors' code has

    matrices of encoder and decoder    Xavier-uniform (`_reset_parameters` of their transformer.py)
    queries, DAB-DETR's anchors        normal of deviation 1
    sigmoid class heads                a bias of -log(99): every class begins at 0.01 (Lin et al., ICCV 2017, section 4.1)
    the last layer of their box heads  zero; in Deformable DETR -2 for width and height, but not where boxes are proposed

where sampling offsets, attention weights and class and box heads keep what transformers gives them, if nothing is said here.
Each family's `initialise` says which of these are its own.
"""

import math
from collections.abc import Iterable
from typing import Any

from torch import nn

KEPT = ("bbox_", "class_", "sampling_offsets", "attention_weights")


def xavier_matrices(*parts: nn.Module) -> None:
    """Of all layers in the parts but those that keep what they have."""
    for part in parts:
        for name, parameter in part.named_parameters():
            if parameter.dim() > 1 and not any(word in name for word in KEPT):
                nn.init.xavier_uniform_(parameter)


def rare_classes(heads: Iterable[nn.Linear]) -> None:
    """Every class begins at 0.01, or background would drown the focal loss."""
    for head in heads:
        nn.init.constant_(head.bias, -math.log(99))


def unmoved_boxes(heads: Iterable[Any]) -> None:
    """Boxes begin at their reference points. heads: transformers' multi-layer perceptrons, of `layers`."""
    for head in heads:
        nn.init.zeros_(head.layers[-1].weight)
        nn.init.zeros_(head.layers[-1].bias)
