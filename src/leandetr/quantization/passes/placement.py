"""Where the static grids go, decided from what runs into what.

A layer that multiplies integers needs its input on a grid. ONNX Runtime, beyond that, only runs a convolution in integers where
its output goes to a grid too, at once or after a ReLU (else it is slower than in float: 2.2 against 1.6 ms for 64 to 64
channels, 3x3, at 60x80, and 0.5 ms in integers), and only adds a shortcut in integers where both terms and the sum's ReLU are
on grids. So:

- every static layer gets a grid on its input, unless the module before it has put the tensor on one already;
- a ReLU that follows a static convolution, or feeds one, gets a grid on its output, which all who read that tensor share;
- every other static convolution gets a grid on its own output.

TensorRT adds a shortcut in the convolution before it, whose sum it keeps in float for that: there the last rule does not hold.
XNNPACK runs no product in integers whose output goes to no grid: there linear layers are placed as convolutions are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from timm.layers import Conv2dSame
from torch import nn

from leandetr.quantization.config import LowBit, Static
from leandetr.quantization.config.post_training import XNNPACK
from leandetr.quantization.grids import GridSetting
from leandetr.quantization.layers.modules import GIVEN_INPUT, GRID_INPUT, LayerPlan
from leandetr.quantization.passes.flow import watch

#: activations that QuantizeLinear absorbs, because their lower bound is the grid's own
RECTIFIERS = (nn.ReLU, nn.ReLU6)


@dataclass
class Placement:
    """plans: layer on calibrated grids -> its plan. inputs, outputs: module -> the setting of the grid on its input, or on its
    output. activations: those of `outputs` that are ReLUs or operands of attention, not layers. sources: layer whose input is
    given -> the module that puts it on a grid. idle: layers that the run never called, which can have no grid."""

    plans: dict[nn.Module, LayerPlan] = field(default_factory=dict)
    inputs: dict[nn.Module, GridSetting] = field(default_factory=dict)
    outputs: dict[nn.Module, GridSetting] = field(default_factory=dict)
    activations: dict[nn.Module, GridSetting] = field(default_factory=dict)
    sources: dict[nn.Module, nn.Module] = field(default_factory=dict)
    idle: set[nn.Module] = field(default_factory=set)

    def add_activations(self, settings: Mapping[nn.Module, GridSetting]) -> None:
        self.activations |= settings
        self.outputs |= settings


def place(model: nn.Module, settings: dict[nn.Module, Static], run: Callable[[], object]) -> Placement:
    """Choose the grids of the layers in `settings`. `run` calls the model once."""
    rectifiers = [module for module in model.modules() if isinstance(module, RECTIFIERS)]
    flow = watch([*settings, *rectifiers], run)
    placement = Placement(idle={layer for layer in settings if layer not in flow.sources})
    closed = {
        layer: setting.grid()
        for layer, setting in settings.items()
        if isinstance(layer, nn.Conv2d) or setting.target == XNNPACK
    }

    for rectifier in rectifiers:
        if len(flow.sources.get(rectifier, [])) != 1:
            continue
        neighbours = [flow.source(rectifier), *flow.consumers.get(rectifier, ())]
        found = [closed[module] for module in neighbours if module in closed]
        if found:
            placement.add_activations({rectifier: max(found, key=lambda grid: grid.bits)})
    for layer, grid in closed.items():
        follows = flow.consumers.get(layer, set())
        gridded = follows and all(module in placement.activations and flow.source(module) is layer for module in follows)
        if layer not in placement.idle and not gridded and not grid.symmetric:
            placement.outputs[layer] = grid

    for layer, setting in settings.items():
        if layer in placement.idle:
            continue
        source = flow.source(layer)
        on_grid = source in placement.outputs and placement.outputs[source].bits == setting.activation_bits
        # a convolution that pads by itself would have its padding between the grid and the product
        given = on_grid and not isinstance(layer, Conv2dSame)
        if given and source is not None:
            placement.sources[layer] = source
        else:
            placement.inputs[layer] = setting.grid()
        placement.plans[layer] = LayerPlan(
            weight_bits=setting.weight_bits,
            input=GIVEN_INPUT if given else GRID_INPUT,
            input_bits=setting.activation_bits,
            output_bits=placement.outputs[layer].bits if layer in placement.outputs else None,
        )
    return placement


def place_trained(model: nn.Module, settings: dict[nn.Module, LowBit], run: Callable[[], object]) -> Placement:
    """Choose the grids of low-bit training, where every layer rounds its own input, as in Q-DETR: the sums that shortcuts carry
    stay float. `run` calls the model once."""
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    flow = watch({*settings, *convolutions}, run)
    first = next((module for module in flow.sources if isinstance(module, nn.Conv2d)), None)

    placement = Placement(idle={layer for layer in settings if layer not in flow.sources})
    for layer, setting in settings.items():
        if layer not in placement.idle:
            weight_bits, bits = setting.layer_bits(layer, layer is first)
            placement.plans[layer] = LayerPlan(weight_bits=weight_bits, input=GRID_INPUT, input_bits=bits)
            placement.inputs[layer] = setting.grid(bits)
    return placement
