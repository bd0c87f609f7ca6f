"""Observers against plain NumPy on all values at once, and grids that hold what they promise."""

import numpy as np
import pytest
import torch

from leandetr.quantization.grids import GridSetting, grid_of
from leandetr.quantization.passes.observers import Entropy, MeanSquares, MinMax, MovingAverage, Percentile


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

    assert error(observed(MeanSquares(GridSetting(4)), spiked)) < 0.9 * error(observed(MinMax(), spiked))


def test_percentile_is_that_of_numpy_to_a_bin(batches):
    values = torch.cat([batch.flatten() for batch in batches]).numpy()
    observer = Percentile(99.0)
    assert observed(observer, batches) == pytest.approx(tuple(np.percentile(values, [0.5, 99.5])), abs=2 * observer.width)


def candidates(low, high):
    return [(low * step / 80, high * step / 80) for step in range(80, 0, -1)]


def rounded(values, ends, bits):
    low, high = min(ends[0], 0), max(ends[1], 0)
    scale = np.float32((high - low) / (2**bits - 1))
    zero = np.clip(np.round(-low / scale), 0, 2**bits - 1)
    return np.clip(np.round(values / scale) + zero, 0, 2**bits - 1), scale, zero


@pytest.mark.parametrize("bits", [4, 8])
def test_mse_range_is_the_best_for_the_values_themselves(batches, bits):
    values = torch.cat([batch.flatten() for batch in batches]).double().numpy()

    def error(ends):
        levels, scale, zero = rounded(values, ends, bits)
        return ((values - (levels - zero) * scale) ** 2).sum()

    observer = MeanSquares(GridSetting(bits))
    found = observed(observer, batches)
    assert error(found) <= 1.02 * min(error(ends) for ends in candidates(*observer.ends()))


@pytest.mark.parametrize("bits", [4, 6])
def test_entropy_is_that_of_a_plain_loop(batches, bits):
    spiked = [torch.cat([batch.flatten(), torch.tensor([40.0, -9.0])]).relu() for batch in batches]
    values = torch.cat(spiked).double().numpy()
    observer = Entropy(GridSetting(bits))
    found = observed(observer, spiked)
    counts, edges = np.histogram(values, bins=observer.bins, range=(0, observer.bins * observer.width))
    best, least = None, np.inf
    for ends in candidates(*observer.ends()):
        size = round(ends[1] / observer.width)
        if size == 0:
            continue
        p = counts[:size].astype(float)
        p[-1] += counts[size:].sum()
        levels = rounded((edges[:size] + edges[1 : size + 1]) / 2, ends, bits)[0]
        q = np.zeros(size)
        for level in np.unique(levels):
            members = (levels == level) & (counts[:size] > 0)
            q[members] = counts[:size][levels == level].sum() / max(members.sum(), 1)
        if q.sum() == 0:
            continue
        p, q = p / p.sum(), q / q.sum() * (1 - 1e-4) + 1e-4 / size
        divergence = sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)
        if divergence < least:
            best, least = ends, divergence
    assert found == pytest.approx(best, rel=0.03)
    assert found[1] < 39


@pytest.mark.parametrize(
    "make",
    [MinMax, MovingAverage, lambda: Percentile(99.9), lambda: MeanSquares(GridSetting(8)), lambda: Entropy(GridSetting(8))],
)
def test_memory_does_not_grow_with_the_number_of_batches(batches, make):
    few, many = make(), make()
    observed(few, batches[:1])
    observed(many, batches * 4)

    def numbers(observer) -> int:
        return sum(value.numel() if isinstance(value, torch.Tensor) else 1 for value in vars(observer).values())

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


@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.0, 6.0), (-2.0, -0.5), (0.0, 0.0)])
def test_a_symmetric_grid_is_int8_around_zero(low, high):
    scale, zero = grid_of(low, high, 8, symmetric=True)
    assert (int(zero), zero.dtype) == (128, torch.uint8)  # 0..255 less 128 is int8
    assert float(scale) == pytest.approx(max(-low, high) / 127 or 1.0)


def test_mse_of_a_symmetric_grid_is_that_of_the_grid_it_gets(batches):
    values, setting = torch.cat([batch.flatten() for batch in batches]), GridSetting(8, "mse", symmetric=True)

    def error(top):
        scale = top / 127
        return ((values / scale).round().clamp(-128, 127) * scale - values).square().sum()

    low, high = observed(MeanSquares(setting), batches)
    tops = values.abs().max() * torch.arange(20, 81) / 80
    assert error(max(-low, high)) <= 1.02 * min(error(top) for top in tops)
