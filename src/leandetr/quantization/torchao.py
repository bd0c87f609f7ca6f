"""Quantized detectors with torchao's tensors, so that `torch.compile` finds real integer kernels."""

from __future__ import annotations

import copy
from types import ModuleType

import torch
from timm.layers import Conv2dSame
from torch import nn

from leandetr.detectors.detector import Detector
from leandetr.errors import UserError
from leandetr.quantization.checkpoint import detach
from leandetr.quantization.layers.modules import (
    AT_RUN_TIME,
    FLOAT_INPUT,
    ROWS_INPUT,
    QuantizedConv2d,
    QuantizedLayer,
    QuantizedLinear,
    replace_modules,
)


def to_torchao(detector: Detector) -> Detector:
    """A copy of a detector quantized as weight-only or dynamic, or smoothed and then so, whose Linear layers hold torchao's
    tensors with the same integers.

    Outputs agree with the detector's to 1e-4 where weights alone are integers. Dynamic layers take their grids over what ours
    do, the whole input or a row, and may round a value that lies between two steps to the other one: agreement is to one step
    there. Convolutions, for which torchao has no such tensors, become float. The copy is for running: it no longer is a
    quantized checkpoint of this package; save the detector it was made from.

    Raises:
        UserError: torchao is not installed; the detector is not quantized, or has calibrated grids.

    Examples:
        >>> fast = torch.compile(to_torchao(load("runs/student-dynamic")).model)      # doctest: +SKIP
    """
    torchao, rounding_inputs = _import_torchao()
    if getattr(detector.config, "quantization_config", None) is None:
        raise UserError("the model is not quantized; quantize it as weight-only or dynamic before converting it to torchao")
    for name, module in detector.model.named_modules():
        if isinstance(module, QuantizedLayer) and module.plan.input not in (FLOAT_INPUT, *AT_RUN_TIME):
            raise UserError(
                f"{name} has a calibrated grid, which torchao's tensors lack; convert a weight-only or dynamic model"
            )
    detector = copy.deepcopy(detector).eval()
    model = detector.model
    replacements: dict[nn.Module, nn.Module] = {}
    for module in model.modules():
        if isinstance(module, QuantizedLinear):
            replacements[module] = _linear(module, torchao, rounding_inputs)
        elif isinstance(module, QuantizedConv2d):
            replacements[module] = _convolution(module)
    replace_modules(model, replacements)
    detach(model)
    return detector


def _linear(layer: QuantizedLinear, torchao: ModuleType, rounding_inputs: type) -> nn.Linear:
    outputs, inputs = layer.shape
    linear = nn.Linear(inputs, outputs, bias=layer.bias is not None, device="meta")
    integers = layer.integers().detach()
    if layer.plan.group_size is None:
        if layer.plan.input == ROWS_INPUT:
            grid = {"granularity": torchao.PerRow(), "mapping_type": torchao.MappingType.SYMMETRIC}
        else:
            grid = {"granularity": torchao.PerTensor(), "mapping_type": torchao.MappingType.ASYMMETRIC}
        weight = torchao.Int8Tensor(
            integers,
            layer.weight_scale[:, None],
            [1, inputs],
            torch.float32,
            act_pre_scale=layer.input_factor if layer.plan.smoothed else None,
            act_quant_kwargs=rounding_inputs(**grid) if layer.plan.input in AT_RUN_TIME else None,
        )
    else:
        scale = layer.weight_scale.float()
        weight = torchao.IntxUnpackedToInt8Tensor(
            integers,
            scale,
            torch.zeros_like(scale, dtype=torch.int8),
            getattr(torch, f"int{layer.plan.weight_bits}"),
            (1, layer.plan.group_size),
            torch.float32,
            None,
        )
    linear.weight = nn.Parameter(weight, requires_grad=False)
    linear.register_parameter("bias", layer.bias)
    return linear.eval()


def _convolution(layer: QuantizedConv2d) -> nn.Conv2d:
    outputs, inputs, height, width = layer.shape
    kind = Conv2dSame if layer.same else nn.Conv2d
    shape = (inputs * layer.groups, outputs, (height, width), layer.stride, layer.padding, layer.dilation, layer.groups)
    convolution = kind(*shape, bias=layer.bias is not None, device="meta")
    convolution.weight = nn.Parameter(layer.float_weight().detach(), requires_grad=False)
    convolution.bias = layer.bias
    return convolution.eval()


def _import_torchao() -> tuple[ModuleType, type]:
    """Its quantization module, and the options of inputs rounded at run time, which it does not show there."""
    try:
        import torchao.quantization
        from torchao.quantization.quantize_.workflows.int8.int8_tensor import QuantizeTensorToInt8Kwargs
    except ImportError as error:
        raise UserError("this needs the package torchao; install it with: pip install 'leandetr[torchao]'") from error
    return torchao.quantization, QuantizeTensorToInt8Kwargs
