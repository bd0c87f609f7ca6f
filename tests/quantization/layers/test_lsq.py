"""Learned rounding against the formulas of LSQ and LSQ+, written as a plain loop over single values."""

import math

import pytest
import torch

from leandetr.quantization.layers.lsq import learned_rounding, least_squares_step


def plain(x: float, step: float, zero: float, low: int, high: int) -> tuple[float, float, float, float]:
    """-> rounded value and its derivatives with respect to the value, the step and the zero point."""
    zero, v = round(zero), x / step
    if v < low - zero:
        return step * (low - zero), 0.0, low - zero, -step
    if v > high - zero:
        return step * (high - zero), 0.0, high - zero, -step
    return step * round(v), 1.0, round(v) - v, 0.0


@pytest.mark.parametrize(
    ("zero", "low", "high"), [(0.0, 0, 15), (5.4, 0, 15), (0.0, -8, 7), (0.0, -2, 1), (100.0, 0, 255), (0.6, 0, 3)]
)
def test_gradients_are_those_of_the_formulas(zero, low, high):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, 5, generator=generator).requires_grad_()
    gradient = torch.randn(3, 4, 5, generator=generator)
    step = torch.tensor(2.5 / (high - low), requires_grad=True)
    zero_point = torch.tensor(zero, requires_grad=True)
    out = learned_rounding(x, step, zero_point, low, high)
    out.backward(gradient)

    for_step = for_zero = 0.0
    for value, g, found, passed in zip(*(t.detach().flatten().tolist() for t in (x, gradient, out, x.grad)), strict=True):
        expected, dx, ds, dz = plain(value, step.item(), zero, low, high)
        assert found == pytest.approx(expected, abs=1e-5)
        assert passed == pytest.approx(g * dx, abs=1e-6)
        for_step, for_zero = for_step + g * ds, for_zero + g * dz
    scale = 1 / math.sqrt(x.numel() * high)
    assert step.grad.item() == pytest.approx(for_step * scale, rel=1e-4, abs=1e-5)
    assert zero_point.grad.item() == pytest.approx(for_zero * scale, rel=1e-4, abs=1e-5)


def test_every_channel_has_a_step_of_its_own():
    generator = torch.Generator().manual_seed(0)
    weight, gradient = (torch.randn(4, 3, 2, 2, generator=generator) for _ in range(2))
    step = torch.tensor([0.1, 0.2, 0.3, 0.4]).reshape(4, 1, 1, 1).requires_grad_()
    learned_rounding(weight, step, torch.zeros(()), -8, 7).backward(gradient)
    for channel in range(4):
        alone = step.detach()[channel, 0, 0, 0].requires_grad_()
        learned_rounding(weight[channel], alone, torch.zeros(()), -8, 7).backward(gradient[channel])
        assert step.grad[channel].item() == pytest.approx(alone.grad.item(), rel=1e-5)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_without_gradients_the_values_are_the_same(bits):
    x, step, zero = torch.linspace(-3, 3, 999), torch.tensor(0.17), torch.tensor(1.7)
    with torch.no_grad():
        silent = learned_rounding(x, step, zero, 0, 2**bits - 1)
    assert torch.equal(silent, learned_rounding(x.clone().requires_grad_(), step, zero, 0, 2**bits - 1).detach())
    assert len(silent.unique()) <= 2**bits


def test_sixteen_bits_are_nearly_the_identity():
    x = torch.randn(1000).clamp(-3, 3)
    torch.testing.assert_close(
        learned_rounding(x, torch.tensor(1e-4), torch.zeros(()), -(2**15), 2**15 - 1), x, atol=6e-5, rtol=0
    )


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_calibrated_step_rounds_better_than_that_of_the_largest_weight(bits):
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    weight = torch.randn(6, 32, 3, 3, generator=torch.Generator().manual_seed(0))
    weight[5] = 0

    def error(step):
        return (
            (learned_rounding(weight, step.reshape(-1, 1, 1, 1), torch.zeros(()), low, high) - weight).square().sum((1, 2, 3))
        )

    step, largest = least_squares_step(weight, low, high), weight.abs().amax((1, 2, 3)) / high
    assert (step > 0).all()
    assert (error(step)[:5] < error(largest)[:5]).all()
