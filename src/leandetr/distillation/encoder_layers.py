"""Layer-by-layer distillation of the encoder (AQ-DETR, Wang et al., AAAI 2024).

What a low-bit encoder gets wrong, every layer adds to. The answer of each layer's self-attention therefore imitates that of the
float copy, which has seen float inputs in all layers before:

    L = sum over encoder layers l of  mean (phi_l(MHSA_l(x_S)) - MHSA_l(x_T))^2

over images, tokens and channels; phi_l is linear where the widths differ, else nothing. Known to us is the paper's abstract:
the mean is our choice. A quantized student learns from the float one, a small one from any with as many encoder layers and
tokens.

The answers come before the memory: the logged gradient of this term at the memory is 0.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leandetr.detectors.attention import encoder_attentions
from leandetr.detectors.detector import Detector
from leandetr.distillation.levels import width_of
from leandetr.distillation.term import Term
from leandetr.errors import UserError
from leandetr.structures import Batch, DetectorOutput


class EncoderLayers(Term):
    """Imitates the answers of the teacher's encoder attentions, layer by layer.

    Args:
        layers: how many there are. student_width, teacher_width: their channels.
    """

    name = "encoder-layers"
    needs = frozenset({"encoder_attended"})

    def __init__(self, layers: int, student_width: int, teacher_width: int) -> None:
        super().__init__()
        same = student_width == teacher_width
        self.adapters = nn.ModuleList(nn.Identity() if same else nn.Linear(student_width, teacher_width) for _ in range(layers))

    @classmethod
    def build(cls, student: Detector, teacher: Detector) -> Self:
        """Raises UserError where the two have different numbers of encoder layers, or none."""
        own, theirs = (len(encoder_attentions(detector.model.model)) for detector in (student, teacher))
        if own != theirs or own == 0:
            raise UserError(
                f"the encoder-layers term pairs layer with layer, and the student's encoder has {own}, the teacher's {theirs}; "
                "take a teacher with as many encoder layers, such as the student before its quantization"
            )
        return cls(own, width_of(student), width_of(teacher))

    def forward(self, student: DetectorOutput, teacher: DetectorOutput, batch: Batch) -> dict[str, Tensor]:
        """(B, S, D) a layer of both -> {"attention": scalar}.

        Raises UserError where the two have different tokens.
        """
        losses = []
        for adapter, own, taught in zip(self.adapters, student.encoder_attended, teacher.encoder_attended, strict=True):
            if own.shape[1] != taught.shape[1]:
                raise UserError(
                    f"the encoder-layers term pairs token with token, and the student has {own.shape[1]}, the teacher "
                    f"{taught.shape[1]}; take a teacher of the same image size and strides"
                )
            losses.append(F.mse_loss(adapter(own), taught))
        return {"attention": torch.stack(losses).sum()}
