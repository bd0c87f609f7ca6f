"""Where the static grids go, decided from what runs into what.

A layer that multiplies integers needs its input on a grid. ONNX Runtime, beyond that, only runs a convolution in integers where
its output goes to a grid too, at once or after a ReLU (else it is slower than in float: 2.2 against 1.6 ms for 64 to 64
channels, 3x3, at 60x80, and 0.5 ms in integers), and only adds a shortcut in integers where both terms and the sum's ReLU are
on grids. So:

- every static layer gets a grid on its input, unless the module before it has put the tensor on one already;
- a ReLU that follows a static convolution, or feeds one, gets a grid on its output, which all who read that tensor share;
- every other static convolution gets a grid on its own output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from timm.layers import Conv2dSame
from torch import nn

from leandetr.quantization.config import Static
from leandetr.quantization.layers.modules import GIVEN_INPUT, GRID_INPUT, LayerPlan
from leandetr.quantization.passes.flow import watch

#: activations that QuantizeLinear absorbs, because their lower bound is the grid's own
RECTIFIERS = (nn.ReLU, nn.ReLU6)


@dataclass
class Placement:
    """plans: static layer -> its plan. activations: ReLU -> the setting of the grid on its output. sources: layer whose input
    is given -> the module that puts it on a grid. idle: static layers that the run never called, which can have no grid."""

    plans: dict[nn.Module, LayerPlan] = field(default_factory=dict)
    activations: dict[nn.Module, Static] = field(default_factory=dict)
    sources: dict[nn.Module, nn.Module] = field(default_factory=dict)
    idle: set[nn.Module] = field(default_factory=set)


def place(model: nn.Module, settings: dict[nn.Module, Static], run: Callable[[], object]) -> Placement:
    """Choose the grids of the layers in `settings`. `run` calls the model once."""
    rectifiers = [module for module in model.modules() if isinstance(module, RECTIFIERS)]
    flow = watch([*settings, *rectifiers], run)
    placement = Placement(idle={layer for layer in settings if layer not in flow.sources})
    convolutions = {layer: setting for layer, setting in settings.items() if isinstance(layer, nn.Conv2d)}

    for rectifier in rectifiers:
        if len(flow.sources.get(rectifier, [])) != 1:
            continue
        neighbours = [flow.source(rectifier), *flow.consumers.get(rectifier, ())]
        found = [convolutions[module] for module in neighbours if module in convolutions]
        if found:
            placement.activations[rectifier] = max(found, key=lambda setting: setting.activation_bits)
    outputs = {rectifier: setting.activation_bits for rectifier, setting in placement.activations.items()}
    for conv, setting in convolutions.items():
        follows = flow.consumers.get(conv, set())
        if not (follows and all(module in placement.activations and flow.source(module) is conv for module in follows)):
            outputs[conv] = setting.activation_bits

    for layer, setting in settings.items():
        if layer in placement.idle:
            continue
        source = flow.source(layer)
        # a convolution that pads by itself would have its padding between the grid and the product
        given = outputs.get(source) == setting.activation_bits and not isinstance(layer, Conv2dSame)
        if given:
            placement.sources[layer] = source
        placement.plans[layer] = LayerPlan(
            weight_bits=setting.weight_bits,
            input=GIVEN_INPUT if given else GRID_INPUT,
            input_bits=setting.activation_bits,
            output_bits=outputs.get(layer),
        )
    return placement
