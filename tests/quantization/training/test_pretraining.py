"""A backbone in low-bit training: eight bits in the first convolution, steps that follow BatchNorm's folding, gradients, and
the float weights under their own names."""

import copy

import pytest
import torch
from torch import nn

from leandetr.errors import UserError
from leandetr.quantization.config import LowBit
from leandetr.quantization.layers.lsq import least_squares_step
from leandetr.quantization.layers.trainable import TrainableConv2d, TrainableLinear
from leandetr.quantization.training.pretraining import round_backbone

CONFIG = LowBit(bits="3-4-8", part="backbone")


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(8 * 36, 4))


@pytest.fixture
def batches():
    return list(torch.randn(3, 4, 3, 8, 8, generator=torch.Generator().manual_seed(1)))


def test_layers_are_replaced_with_the_widths_of_the_scheme(backbone, batches):
    before = copy.deepcopy(backbone)
    assert round_backbone(backbone, CONFIG, batches) == 3
    first, second, linear = backbone[0], backbone[3], backbone[5]
    assert [type(layer) for layer in (first, second, linear)] == [TrainableConv2d, TrainableConv2d, TrainableLinear]
    assert [layer.weight_grid.high for layer in (first, second, linear)] == [127, 3, 3]
    assert [layer.input.high for layer in (first, second, linear)] == [255, 15, 15]
    assert before.state_dict().keys() <= backbone.state_dict().keys()
    assert all(torch.equal(tensor, backbone.state_dict()[name]) for name, tensor in before.named_parameters())
    backbone(batches[0]).square().sum().backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())


def test_folding_a_norm_scales_the_steps_and_leaves_the_integers(backbone):
    weight, scale = backbone[3].weight.detach(), torch.rand(8) + 0.5
    steps = [least_squares_step(w, -4, 3).flatten() for w in (weight, weight * scale[:, None, None, None])]
    torch.testing.assert_close(steps[0] * scale, steps[1], rtol=1e-4, atol=0)


def test_without_images_it_is_refused(backbone):
    with pytest.raises(UserError, match="no layer of the backbone ran"):
        round_backbone(backbone, CONFIG, [])
