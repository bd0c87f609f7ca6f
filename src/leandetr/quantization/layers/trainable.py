"""Layers that train on low-bit grids: float weights and learned steps, rounded in every forward pass as they will be stored.

A trainable layer computes, float rounding included, what the `QuantizedLayer` computes that `finish` makes of it: its weights,
its inputs and its bias are rounded to the integers that are stored in the end.

A step is kept positive by the softplus of what is trained. Steps are mostly far below 1, where softplus is nearly exp: an
update by Adam, whose size is the learning rate, changes a step of 0.001 and one of 0.1 by the same fraction.
"""

from __future__ import annotations

import torch
from timm.layers import Conv2dSame
from timm.layers.padding import pad_same
from torch import Tensor, nn
from torch.nn import functional as F

from leandetr.quantization.grids import signed, symmetric, unsigned
from leandetr.quantization.layers.lsq import learned_rounding, least_squares_step
from leandetr.quantization.layers.modules import INT32_REACH, GriddedActivation, LayerPlan, QuantizedLayer, geometry
from leandetr.quantization.layers.packing import pack


class LearnedGrid(nn.Module):
    """A grid with a trained step.

    Args:
        low, high: the integers at its ends.
        shape: of the steps as they meet the tensor: () for one, (channels, 1, ...) for one a channel.

    Attributes:
        counting: whether forward passes leave in `clipped` the share of values beyond the ends of the grid.
    """

    def __init__(self, low: int, high: int, shape: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.low, self.high = low, high
        self.shape = shape
        self.raw_step = nn.Parameter(torch.zeros(shape[:1]))  # of one dimension, as everything that does not decay
        self.counting = False
        self.clipped: Tensor | None = None

    @property
    def step(self) -> Tensor:
        return F.softplus(self.raw_step).reshape(self.shape)

    @property
    def zero_point(self) -> Tensor:
        return self.raw_step.new_zeros(())

    @torch.no_grad()
    def set_step(self, step: Tensor) -> None:
        self.raw_step.copy_((step + torch.log(-torch.expm1(-step))).reshape(self.shape[:1]))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """What a trainer is to treat otherwise than weights: steps and zero points have a rate and a start of their own."""
        return {"grid": list(self.parameters())}

    def forward(self, x: Tensor) -> Tensor:
        step, zero_point = self.step, self.zero_point
        if self.counting:
            self.clipped = self._outside(x, step, zero_point)
        return learned_rounding(x.float(), step, zero_point, self.low, self.high)

    @torch.no_grad()
    def _outside(self, x: Tensor, step: Tensor, zero_point: Tensor) -> Tensor:
        zero = zero_point.round()
        scaled = x / step
        return ((scaled < self.low - zero) | (scaled > self.high - zero)).float().mean()

    def extra_repr(self) -> str:
        return f"{self.low}..{self.high}"


class WeightGrid(LearnedGrid):
    """A symmetric grid for each output channel of a weight. With 8 bits it is -127..127, which all integer kernels take; below
    that the lowest value counts too."""

    def __init__(self, bits: int, weight: Tensor) -> None:
        ends = symmetric(bits) if bits == 8 else signed(bits)
        super().__init__(*ends, (len(weight), *[1] * (weight.ndim - 1)))

    def integers(self, weight: Tensor) -> Tensor:
        """What the weight (out, ...) is rounded to, int8."""
        return torch.clamp(torch.round(weight / self.step), self.low, self.high).to(torch.int8)


class ActivationGrid(LearnedGrid):
    """One unsigned grid for a tensor. Its zero point is trained, unless calibration saw no negative value."""

    signed: Tensor

    def __init__(self, bits: int) -> None:
        super().__init__(*unsigned(bits))
        self.raw_zero_point = nn.Parameter(torch.zeros(()))
        self.register_buffer("signed", torch.ones((), dtype=torch.uint8))

    @property
    def zero_point(self) -> Tensor:
        """Within the grid; the gradient passes as it is, or a zero point at an end of the grid would stay there."""
        beyond = self.raw_zero_point - self.raw_zero_point.clamp(self.low, self.high)
        return (self.raw_zero_point - beyond.detach()) * self.signed

    @torch.no_grad()
    def set(self, scale: Tensor, zero_point: Tensor) -> None:
        """Take over a calibrated grid: scale () and zero point () uint8."""
        self.set_step(scale)
        self.raw_zero_point.copy_(zero_point)

    def train_zero_point(self, negative: bool) -> None:
        """Let it move where calibration saw a negative value, even one so small that the zero point begins at 0."""
        self.signed.fill_(negative)


class TrainableLayer(nn.Module):
    """What trainable Linear and Conv2d share, beside being such layers: the grids of weight and input."""

    plan: LayerPlan
    weight: Tensor
    bias: Tensor | None

    def _take(self, layer: nn.Linear | nn.Conv2d, plan: LayerPlan) -> None:
        assert plan.input_bits is not None  # in training every layer rounds its own input
        self.plan = plan
        self.weight, self.bias = layer.weight, layer.bias
        self.weight_grid = WeightGrid(plan.weight_bits, layer.weight)
        self.input = ActivationGrid(plan.input_bits)

    @torch.no_grad()
    def fill(self, layer: nn.Linear | nn.Conv2d) -> None:
        """Choose the steps of the weights. The grid of the input must have been set before."""
        step = least_squares_step(self.weight, self.weight_grid.low, self.weight_grid.high)
        if self.bias is not None:
            # in a channel that is almost dead the bias must still fit into the int32 that it is stored in
            step = torch.maximum(step, 2 * self.bias.abs() / (self.input.step * INT32_REACH))
        self.weight_grid.set_step(step)

    def rounded_bias(self) -> Tensor | None:
        """The bias in whole units of input step * weight step, as it is stored; its gradient is the float one's."""
        if self.bias is None:
            return None
        with torch.no_grad():
            unit = self._bias_unit()
            rounded = self._bias_integers(self.bias, unit) * unit
        return self.bias + (rounded - self.bias).detach()

    def _bias_unit(self) -> Tensor:
        return self.input.step * self.weight_grid.step.flatten()

    @staticmethod
    def _bias_integers(bias: Tensor, unit: Tensor) -> Tensor:
        least = torch.finfo(unit.dtype).tiny  # the product of two small steps can be 0
        return torch.round(bias / unit.clamp(min=least)).clamp(-INT32_REACH, INT32_REACH)

    @torch.no_grad()
    def finish(self, quantized: QuantizedLayer) -> None:
        """Hand what was trained to the layer that stores it."""
        assert quantized.input is not None  # its plan is this layer's
        quantized.input.set(self.input.step, self.input.zero_point.round())
        integers = self.weight_grid.integers(self.weight)
        packed = quantized.weight.dtype == torch.uint8
        quantized.weight.copy_(pack(integers, self.plan.weight_bits) if packed else integers)
        quantized.weight_scale.copy_(self.weight_grid.step.flatten())
        if self.bias is not None and quantized.bias is not None:
            quantized.bias.copy_(self._bias_integers(self.bias, self._bias_unit()))


class TrainableLinear(TrainableLayer, nn.Linear):  # type: ignore[misc]  # torch knows no Linear whose bias is None
    """(..., in) -> (..., out)."""

    def __init__(self, layer: nn.Linear, plan: LayerPlan) -> None:
        nn.Linear.__init__(self, layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self._take(layer, plan)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.input(x), self.weight_grid(self.weight), self.rounded_bias())


class TrainableConv2d(TrainableLayer, nn.Conv2d):
    """(B, in, H, W) -> (B, out, H', W')."""

    def __init__(self, layer: nn.Conv2d, plan: LayerPlan) -> None:
        height, width = layer.kernel_size
        shape = (layer.in_channels, layer.out_channels, (height, width), *geometry(layer))
        nn.Conv2d.__init__(self, *shape, layer.groups, layer.bias is not None, device="meta")
        self.same = isinstance(layer, Conv2dSame)
        self._take(layer, plan)

    def forward(self, x: Tensor) -> Tensor:
        if self.same:
            x = pad_same(x, list(self.weight.shape[-2:]), list(self.stride), list(self.dilation))
        weight, bias = self.weight_grid(self.weight), self.rounded_bias()
        return F.conv2d(self.input(x), weight, bias, self.stride, self.padding, self.dilation, self.groups)


class TrainableActivation(nn.Module):
    """A module whose output is rounded to a grid with a trained step."""

    def __init__(self, activation: nn.Module, bits: int) -> None:
        super().__init__()
        self.activation = activation
        self.output = ActivationGrid(bits)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.activation(x))

    @torch.no_grad()
    def finish(self, gridded: GriddedActivation) -> None:
        """Hand the trained grid to the module that stores it."""
        gridded.output.set(self.output.step, self.output.zero_point.round())


def trainable_layer(layer: nn.Linear | nn.Conv2d, plan: LayerPlan) -> TrainableLinear | TrainableConv2d:
    """The trainable counterpart of a float layer, which takes over its parameters."""
    if isinstance(layer, nn.Linear):
        return TrainableLinear(layer, plan).to(layer.weight.device)
    return TrainableConv2d(layer, plan).to(layer.weight.device)
