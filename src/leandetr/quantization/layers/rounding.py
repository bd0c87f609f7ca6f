"""Rounding that makes up for itself, on grids that are fixed beforehand: GPTQ (Frantar et al., "GPTQ: Accurate Post-Training
Quantization for Generative Pre-trained Transformers", ICLR 2023).

A layer's weights are rounded one input after the other. What rounding one of them does to the layer's outputs, the inputs not
yet rounded take back as far as they vary along with it:

    H = sum of x x^T over calibration,    U^T U = (H + damping)^-1,    U upper triangular
    e_j = (w_j - round(w_j)) / U_jj,      w_k <- w_k - e_j U_jk  for k > j

which is least squares on the layer's outputs. Inputs with the largest sum of squares come first.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leandetr.quantization.grids import signed

DAMPING = 0.01  # of the mean of the diagonal of H
EDGE = 0.3  # of a step, from an integer: where the next begins is at 0.5
BLOCK = 128  # inputs whose errors reach the inputs after them in one product
MOST_INPUTS = 4608  # the 3x3 convolutions of a ResNet's last stage; H grows with their square, the work with their cube
POSITIONS = 1024  # of one image's, that H is summed over: neighbours say much the same


class InputMoment:
    """H of one layer, (inputs, inputs): its memory does not depend on how much it has seen. A convolution's inputs are those of
    its kernel, channels times positions; a grouped convolution has no such H, and the widest layers have too large a one, see
    `possible`."""

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        self.layer = layer
        inputs = layer.weight[0].numel()
        self.matrix = torch.zeros(inputs, inputs, device=layer.weight.device)
        self.rows = 0  # that it is summed over

    @staticmethod
    def possible(layer: nn.Module) -> bool:
        return getattr(layer, "groups", 1) == 1 and cast("nn.Linear", layer).weight[0].numel() <= MOST_INPUTS

    def update(self, x: Tensor) -> None:
        """x: what the layer takes, (..., in) or (B, in, H, W)."""
        rows: Iterable[Tensor]
        if isinstance(self.layer, nn.Conv2d):
            rows = (_patches(self.layer, image[None]) for image in x)
        else:
            rows = [x.flatten(0, -2)] if x.ndim < 3 else x.flatten(1, -2)
        for inputs in rows:
            inputs = inputs[:: max(1, len(inputs) // POSITIONS)].float()
            self.matrix += inputs.T @ inputs
            self.rows += len(inputs)

    def importance(self) -> Tensor:
        """(in, ...) of the weight's shape: the sum of squares of every input."""
        return self.matrix.diagonal().reshape(self.layer.weight.shape[1:])


def _patches(layer: nn.Conv2d, image: Tensor) -> Tensor:
    """(1, in, H, W) -> (positions, in times kernel). Timm's "same" padding is of the same kind up to the border."""
    if layer.kernel_size == (1, 1):
        return image[0, :, :: layer.stride[0], :: layer.stride[1]].flatten(1).T
    assert not isinstance(layer.padding, str)  # no backbone pads by torch's words
    return F.unfold(image, layer.kernel_size, layer.dilation, layer.padding, layer.stride)[0].T


def round_weights(weight: Tensor, scale: Tensor, bits: int, moment: Tensor) -> Tensor:
    """Integers for a weight.

    Args:
        weight: (out, in, ...) float32.
        scale: of the same shape, the step of every weight's grid.
        bits: of the integers.
        moment: H, (in times kernel) squared.

    Returns:
        int8 of the weight's shape, -2^(bits-1) to 2^(bits-1) - 1.
    """
    moment = moment.double().clone()
    idle = moment.diagonal() == 0  # an input that was always zero takes no part
    moment[idle, idle] = 1
    moment.diagonal().add_(DAMPING * moment.diagonal().mean())
    order = moment.diagonal().argsort(descending=True)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moment[order][:, order]))
    factor = torch.linalg.cholesky(inverse, upper=True).float()
    left, steps = weight.flatten(1)[:, order].clone(), scale.flatten(1)[:, order]
    integers = torch.zeros_like(left)
    for start in range(0, left.shape[1], BLOCK):
        end = min(start + BLOCK, left.shape[1])
        errors = torch.zeros_like(left[:, start:end])
        for column in range(start, end):
            step = steps[:, column]
            integers[:, column] = torch.clamp(torch.round(left[:, column] / step), *signed(bits))
            error = (left[:, column] - integers[:, column] * step) / factor[column, column]
            left[:, column:end] -= error[:, None] * factor[column, column:end]
            errors[:, column - start] = error
        left[:, end:] -= errors @ factor[start:end, end:]
    return integers[:, order.argsort()].to(torch.int8).reshape(weight.shape)


def within_steps(weight: Tensor, step: Tensor, integers: Tensor) -> Tensor:
    """What is rounded to these integers and lies nearest to the weight, but not where the next integer begins; shapes as in any
    arithmetic of tensors."""
    return torch.clamp(weight / step, integers - EDGE, integers + EDGE) * step
