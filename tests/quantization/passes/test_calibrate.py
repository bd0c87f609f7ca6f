"""Calibration hands on what a zero point of 0 does not tell."""

import pytest
import torch
from torch import nn

from leandetr.quantization.grids import GridSetting
from leandetr.quantization.layers.modules import GRID_INPUT, LayerPlan
from leandetr.quantization.layers.trainable import ActivationGrid, trainable_layer
from leandetr.quantization.passes.calibrate import calibrate
from leandetr.quantization.passes.placement import Placement


class Gelu(nn.Module):
    """A linear layer behind an activation; pixel values (B, 4)."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation, self.linear = activation, nn.Linear(4, 2)

    def forward(self, pixel_values, pixel_mask=None):
        return self.linear(self.activation(pixel_values))


@pytest.mark.parametrize(("activation", "moves"), [(nn.GELU(), True), (nn.ReLU(), False)])
def test_a_zero_point_that_begins_at_0_is_trained_where_there_are_negative_values(activation, moves):
    """GELU's least value is -0.17: at 2 bits, with 3 as the largest, that is less than half a step."""
    model = Gelu(activation)
    pixels = torch.linspace(-3, 3, 400).view(100, 4)
    plan = LayerPlan(weight_bits=2, input=GRID_INPUT, input_bits=2)
    placement = Placement(plans={model.linear: plan}, inputs={model.linear: GridSetting(2, "min-max")})
    grids = calibrate(model, placement, {}, [(pixels, pixels)])
    trained = trainable_layer(model.linear, plan)
    grids.fill({model.linear: trained})
    trained.fill(model.linear)
    assert trained.input.zero_point == 0
    (trained(model.activation(pixels)) * torch.tensor([1.0, -2.0])).sum().backward()
    assert (trained.input.raw_zero_point.grad != 0) == moves


def test_a_zero_point_that_was_pushed_out_of_its_grid_can_come_back():
    grid = ActivationGrid(2)
    grid.set(torch.tensor(0.5), torch.tensor(0))
    with torch.no_grad():
        grid.raw_zero_point.fill_(-0.3)
    assert grid.zero_point == 0
    grid(torch.tensor([-1.0, 0.2])).sum().backward()
    assert grid.raw_zero_point.grad < 0
