"""Weights in groups: the nearest point of a grid a group, and errors that make up for each other."""

import numpy as np
import pytest
import torch
from torch import nn

from leandetr.quantization.layers.groups import group_size_of, quantize_groups
from leandetr.quantization.layers.modules import LayerPlan, quantized_layer
from leandetr.quantization.layers.rounding import InputMoment

LAYERS = {
    "linear": (lambda: nn.Linear(96, 20), (2, 7, 96), 32),
    "1x1": (lambda: nn.Conv2d(48, 12, 1, bias=False), (2, 48, 5, 6), 48),
    "3x3": (lambda: nn.Conv2d(32, 12, 3, stride=2, padding=1), (2, 32, 9, 10), 16),
}


@pytest.mark.parametrize(
    ("layer", "asked", "size"),
    [
        (nn.Linear(256, 8), 64, 64),
        (nn.Conv2d(144, 8, 1), 64, 48),
        (nn.Conv2d(24, 8, 1), 32, 24),
        (nn.Conv2d(40, 8, 3), 32, 20),
        (nn.Conv2d(64, 64, 3, groups=64), 64, None),
        (nn.Conv2d(3, 8, 3), 64, None),
        (nn.Linear(34, 8), 32, 17),
        (nn.Linear(37, 8), 32, None),
    ],
)
def test_a_group_divides_the_inputs(layer, asked, size):
    assert group_size_of(layer, asked) == size


@pytest.mark.parametrize("bits", [2, 3, 4, 7])
@pytest.mark.parametrize("kind", LAYERS)
def test_weights_are_the_nearest_on_the_grid_of_their_group(bits, kind):
    torch.manual_seed(0)
    make, _, size = LAYERS[kind]
    weight = make().weight.detach()
    integers, scale = quantize_groups(weight, bits, size)
    assert scale.dtype == torch.float16
    assert scale.shape == (weight.shape[0], weight.shape[1] // size, *weight.shape[2:])
    for row in range(0, weight.shape[0], 5):
        for column in range(weight.shape[1]):
            step = scale[row, column // size].float()
            nearest = torch.clamp(torch.round(weight[row, column] / step), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
            torch.testing.assert_close(integers[row, column].float(), nearest, rtol=0, atol=0)


def test_dead_groups_are_zero():
    weight = torch.randn(4, 32)
    weight[1], weight[2, :16], weight[3, 16:] = 0, 1e-12, 0
    integers, scale = quantize_groups(weight, 4, 16)
    assert torch.isfinite(scale).all()
    assert not integers[1].any()
    assert not integers[2, :16].any()
    assert integers[0].any()


@pytest.mark.parametrize("kind", LAYERS)
def test_calibrated_rounding_answers_closer_to_float(kind):
    torch.manual_seed(0)
    make, shape, size = LAYERS[kind]
    layer = make()
    mixing = torch.randn(shape[-1] if kind == "linear" else shape[1], 8)

    def inputs(seed):
        few = torch.randn(64, 8, *shape[2:] if kind != "linear" else (), generator=torch.Generator().manual_seed(seed))
        return torch.einsum("cf,bf...->bc...", mixing, few) + 0.1 * torch.randn(64, len(mixing), *few.shape[2:])

    moment = InputMoment(layer)
    for seed in range(3):
        moment.update(inputs(seed))
    plan = LayerPlan(weight_bits=4, group_size=size)
    errors = []
    for known in (None, moment):
        quantized = quantized_layer(layer, plan)
        quantized.fill(layer, quantize_groups(layer.weight.detach(), 4, size, known))
        with torch.no_grad():
            errors.append((quantized(inputs(9)) - layer(inputs(9))).square().mean().item())
    assert errors[1] < 0.6 * errors[0]


def test_the_moment_is_the_sum_of_outer_products_and_does_not_grow():
    layer = nn.Conv2d(4, 5, 3, stride=2, padding=1)
    x = torch.randn(3, 4, 9, 8)
    moment = InputMoment(layer)
    plain, padded = np.zeros((36, 36)), np.pad(x.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)))
    for image in padded:
        for top in range(0, 9, 2):
            for left in range(0, 8, 2):
                patch = image[:, top : top + 3, left : left + 3].reshape(-1)
                plain += np.outer(patch, patch)
    moment.update(x)
    np.testing.assert_allclose(moment.matrix.numpy(), plain, rtol=1e-4, atol=1e-4)
    for _ in range(5):
        moment.update(x)
    assert moment.matrix.shape == (36, 36)
