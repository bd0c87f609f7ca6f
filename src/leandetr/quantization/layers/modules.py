"""Quantized layers: what a Linear or Conv2d becomes, and the grid that activations are rounded to.

A layer's integer weights are its parameter `weight` (families' weight initialisation touches it by that name), int8 of the
weight's shape, or packed (see `packing.py`) where they have fewer than 8 bits. Beside them lie `weight_scale`, one value an
output channel:

    weight = round(w / weight_scale),    weight_scale = max |w_channel| / (2^(b-1) - 1)

which is symmetric, since integer kernels want -127..127; or, for weights that are only stored as integers, one value a group of
them, see `groups.py`. A layer with a grid on its input also holds its bias as integers, in
units of input scale * weight_scale, as integer kernels add it to their sums (with a float bias, ONNX Runtime computes a
quantized Gemm in float). A `LayerPlan` says all that has to be known to build a layer before its tensors are there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeGuard, cast

import torch
from timm.layers import Conv2dSame
from timm.layers.padding import pad_same
from torch import Tensor, nn
from torch.nn import functional as F

from leandetr.quantization.grids import symmetric, unsigned
from leandetr.quantization.layers.groups import quantize_groups
from leandetr.quantization.layers.operators import dequantize, dequantize_groups, dynamic_linear, fake_quantize, unpack
from leandetr.quantization.layers.packing import pack, packed_bytes

CONVOLUTIONS = (nn.Conv2d, Conv2dSame)

FLOAT_INPUT, DYNAMIC_INPUT, ROWS_INPUT, GRID_INPUT, GIVEN_INPUT = "float", "dynamic", "dynamic-rows", "grid", "given"
AT_RUN_TIME = (DYNAMIC_INPUT, ROWS_INPUT)

#: of a bias in units of its sum of products. An engine adds both in int32, and the products' half of it is enough for 33,000
#: inputs of 255 * 127.
INT32_REACH = 2.0**30


@dataclass(frozen=True)
class LayerPlan:
    """How one layer is quantized.

    Args:
        weight_bits: 2 to 8.
        group_size: how many weights along the input dimension share a scale; None where an output channel does.
        input: "float"; "dynamic", a grid taken at run time, or "dynamic-rows", one for every row (Linear only); "grid", rounded
            to a calibrated grid by the layer; "given", already on that grid because the module before it put it there.
        smoothed: whether 1/s of SmoothQuant stays with the layer: on its input, or on its weights where its input is float.
        input_bits, output_bits: widths of the calibrated grids on its input and on its output, None without one.
    """

    weight_bits: int = 8
    group_size: int | None = None
    input: str = FLOAT_INPUT
    smoothed: bool = False
    input_bits: int | None = None
    output_bits: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Grid(nn.Module):
    """Rounds a tensor to one calibrated unsigned grid of `bits` bits."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("zero_point", torch.zeros((), dtype=torch.uint8))

    def set(self, scale: Tensor, zero_point: Tensor) -> None:
        """scale () and zero point (), a whole number that is on the grid."""
        self.scale.copy_(scale)
        self.zero_point.copy_(zero_point)

    def forward(self, x: Tensor) -> Tensor:
        return fake_quantize(x, self.scale, self.zero_point, *unsigned(self.bits))

    def extra_repr(self) -> str:
        return f"bits={self.bits}"


class QuantizedLayer(nn.Module):
    """What quantized Linear and Conv2d share: integer weights, the grids around them, the bias.

    Built empty from the float layer's shapes, then filled by `fill` or by a checkpoint.
    """

    weight_scale: Tensor
    input_factor: Tensor  # of smoothed layers
    bias: nn.Parameter | None

    def __init__(self, layer: nn.Linear | nn.Conv2d, plan: LayerPlan) -> None:
        super().__init__()
        self.plan = plan
        self.shape = tuple(layer.weight.shape)
        channels, inputs, *kernel = self.shape
        if plan.weight_bits == 8:
            weight = torch.zeros(self.shape, dtype=torch.int8)
        else:
            weight = torch.zeros(packed_bytes(layer.weight.numel(), plan.weight_bits), dtype=torch.uint8)
        self.weight = nn.Parameter(weight, requires_grad=False)
        if plan.group_size is None:
            self.register_buffer("weight_scale", torch.ones(channels))
        else:
            self.register_buffer("weight_scale", torch.ones(channels, inputs // plan.group_size, *kernel, dtype=torch.half))
        if plan.smoothed:
            self.register_buffer("input_factor", torch.ones(inputs))
        self.input = None if plan.input_bits is None else Grid(plan.input_bits)
        self.output = None if plan.output_bits is None else Grid(plan.output_bits)
        if layer.bias is None:
            self.bias = None
        elif self.input is None:
            self.bias = nn.Parameter(torch.zeros(channels))
        else:
            self.bias = nn.Parameter(torch.zeros(channels, dtype=torch.int32), requires_grad=False)

    @torch.no_grad()
    def fill(self, layer: nn.Linear | nn.Conv2d, rounded: tuple[Tensor, Tensor] | None = None) -> None:
        """Take over a float layer's weights and bias. The grids must have been set before. rounded: integers and scales of
        groups that have been chosen already."""
        if self.plan.group_size is None:
            integers, scale = self._quantize_channels(layer)
        else:
            integers, scale = rounded or quantize_groups(layer.weight.detach(), self.plan.weight_bits, self.plan.group_size)
        self.weight.copy_(integers if self.plan.weight_bits == 8 else pack(integers, self.plan.weight_bits))
        self.weight_scale.copy_(scale)
        if self.bias is not None and layer.bias is not None:
            unit = None if self.input is None else self.input.scale * scale
            bias = layer.bias if unit is None else torch.round(layer.bias / unit).clamp(-INT32_REACH, INT32_REACH)
            self.bias.copy_(bias)

    def _quantize_channels(self, layer: nn.Linear | nn.Conv2d) -> tuple[Tensor, Tensor]:
        low, high = symmetric(self.plan.weight_bits)
        weight = layer.weight.detach().flatten(1)
        scale = weight.abs().amax(1) / high
        if layer.bias is not None and self.input is not None:
            # a channel that is almost dead has a scale in whose units its bias would be beyond the reach
            scale = torch.maximum(scale, layer.bias.abs() / (self.input.scale * INT32_REACH))
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        return torch.clamp(torch.round(weight / scale[:, None]), low, high).to(torch.int8).reshape(self.shape), scale

    def integers(self) -> Tensor:
        """The weights as int8, of the weight's shape."""
        return self.weight if self.plan.weight_bits == 8 else unpack(self.weight, self.plan.weight_bits, self.shape)

    def float_weight(self) -> Tensor:
        if self.plan.group_size is None:
            weight = dequantize(self.integers(), self.weight_scale)
        else:
            weight = dequantize_groups(self.weight, self.weight_scale, self.plan.weight_bits, self.shape)
        return weight * self.input_factor if self.plan.smoothed and self.plan.input == FLOAT_INPUT else weight

    def float_bias(self) -> Tensor | None:
        if self.bias is None or self.input is None:
            return self.bias
        return dequantize(self.bias, self.input.scale * self.weight_scale)

    def forward(self, x: Tensor) -> Tensor:
        if self.plan.smoothed and self.plan.input != FLOAT_INPUT:
            x = x * self.input_factor
        if self.input is not None and self.plan.input == GRID_INPUT:
            x = self.input(x)
        x = self.product(x)
        return x if self.output is None else self.output(x)

    def product(self, x: Tensor) -> Tensor:
        """The layer's own sum of products, bias included."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"{self.shape}, weight_bits={self.plan.weight_bits}, input={self.plan.input}"


class QuantizedLinear(QuantizedLayer):
    """(..., in) -> (..., out)."""

    def product(self, x: Tensor) -> Tensor:
        if self.plan.input not in AT_RUN_TIME:
            return F.linear(x, self.float_weight().to(x.dtype), self.float_bias())
        x = dynamic_linear(x, self.integers(), self.weight_scale, self.plan.input == ROWS_INPUT)
        return x if self.bias is None else x + self.bias


class QuantizedConv2d(QuantizedLayer):
    """(B, in, H, W) -> (B, out, H', W')."""

    def __init__(self, layer: nn.Conv2d, plan: LayerPlan) -> None:
        super().__init__(layer, plan)
        self.stride, self.padding, self.dilation = geometry(layer)
        self.groups = layer.groups
        self.same = getattr(layer, "same", isinstance(layer, Conv2dSame))  # the trainable one is no longer of that class

    def forward(self, x: Tensor) -> Tensor:
        if self.same:  # before the grid, so that nothing stands between the grid and the convolution
            x = pad_same(x, list(self.shape[-2:]), list(self.stride), list(self.dilation))
        return super().forward(x)

    def product(self, x: Tensor) -> Tensor:
        weight = self.float_weight().to(x.dtype)
        return F.conv2d(x, weight, self.float_bias(), self.stride, self.padding, self.dilation, self.groups)


class GriddedActivation(nn.Module):
    """An activation function whose output is rounded to a calibrated grid."""

    def __init__(self, activation: nn.Module, bits: int) -> None:
        super().__init__()
        self.activation = activation
        self.output = Grid(bits)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.activation(x))


def geometry(layer: nn.Conv2d) -> tuple[tuple[int, int], str | tuple[int, int], tuple[int, int]]:
    """Stride, padding and dilation, in pairs, as torch keeps them; it declares tuples of any length."""
    return cast("Any", (layer.stride, layer.padding, layer.dilation))


def is_quantizable(module: nn.Module) -> TypeGuard[nn.Linear | nn.Conv2d]:
    """A plain Linear or Conv2d. Subclasses are not: they do arithmetic of their own with their weights."""
    return type(module) is nn.Linear or (type(module) in CONVOLUTIONS and module.padding_mode == "zeros")


def quantized_layer(layer: nn.Linear | nn.Conv2d, plan: LayerPlan) -> QuantizedLayer:
    """The empty quantized counterpart of a float layer."""
    quantized = QuantizedLinear(layer, plan) if isinstance(layer, nn.Linear) else QuantizedConv2d(layer, plan)
    return quantized.to(layer.weight.device)


def names_of(model: nn.Module) -> dict[nn.Module, list[str]]:
    """Every module -> all names it is known by; more than one where it is shared."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    return names


def replace_modules(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> None:
    """Put the new modules in place of the old, under every name that an old one has."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():  # named_children() leaves out a child's second name
            if child is not None and child in replacements:
                parent._modules[name] = replacements[child]
