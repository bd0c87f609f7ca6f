"""Observers against plain NumPy on all values at once, and grids that hold what they promise."""

import numpy as np
import pytest
import torch

from leandetr.quantization.observers import Histogram, MeanSquares, MinMax, MovingAverage, Percentile, grid_of


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(4, 50, 20, generator=generator) * (1 + 0.3 * k) for k in range(5)]


def observed(observer, batches):
    for batch in batches:
        observer.update(batch)
    return observer.range()


def test_min_max_is_that_of_all_values(batches):
    values = torch.cat([batch.flatten() for batch in batches]).numpy()
    assert observed(MinMax(), batches) == pytest.approx((values.min(), values.max()))


def test_moving_average_weighs_a_new_batch_with_a_tenth(batches):
    low, high = batches[0].min().item(), batches[0].max().item()
    for batch in batches[1:]:
        low, high = 0.9 * low + 0.1 * batch.min().item(), 0.9 * high + 0.1 * batch.max().item()
    assert observed(MovingAverage(), batches) == pytest.approx((low, high))


def test_percentile_leaves_the_asked_share_of_the_values_outside(batches):
    values = torch.cat([batch.flatten() for batch in batches]).numpy()
    low, high = observed(Percentile(99.0), batches)
    outside = np.mean((values < low) | (values > high))
    assert 0.005 < outside < 0.035


def test_mse_range_rounds_better_than_min_max_where_there_are_outliers(batches):
    spiked = [torch.cat([batch.flatten(), torch.tensor([60.0])]) for batch in batches]
    values = torch.cat(spiked)

    def error(ends):
        scale, zero = grid_of(*ends, bits=4)
        zero = zero.float()
        return (((values / scale).round() + zero).clamp(0, 15) - zero).mul(scale).sub(values).square().sum()

    assert error(observed(MeanSquares(4), spiked)) < 0.9 * error(observed(MinMax(), spiked))


def test_memory_does_not_grow_with_the_number_of_batches(batches):
    few, many = Percentile(99.9), Percentile(99.9)
    observed(few, batches[:1])
    observed(many, batches * 4)

    def numbers(observer: Histogram) -> int:
        return sum(value.numel() for value in vars(observer).values() if isinstance(value, torch.Tensor))

    assert numbers(few) == numbers(many) > 0


@pytest.mark.parametrize(
    ("low", "high", "bits"), [(-1.0, 3.0, 8), (0.0, 6.0, 4), (-2.0, -0.5, 8), (0.5, 2.0, 2), (0.0, 0.0, 8)]
)
def test_a_grid_holds_zero_exactly_and_its_range(low, high, bits):
    scale, zero = grid_of(low, high, bits)
    assert scale > 0
    assert zero.dtype == torch.uint8
    assert 0 <= int(zero) <= 2**bits - 1
    reach = [float((level - int(zero)) * scale) for level in (0, 2**bits - 1)]
    assert reach[0] <= min(low, 0) + scale / 2 + 1e-6
    assert reach[1] >= max(high, 0) - scale / 2 - 1e-6
