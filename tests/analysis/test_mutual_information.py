"""The estimators where the truth is known: Gaussians, independent variables, classes that lie apart."""

import math

import pytest
import torch

from leandetr.analysis.mutual_information import class_information, entropy, estimate, mutual_information, principal


def gaussians(n, dimensions, correlation, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, noise = (torch.randn(n, dimensions, generator=generator) for _ in range(2))
    return x, correlation * x + math.sqrt(1 - correlation**2) * noise


@pytest.mark.parametrize(
    ("dimensions", "correlation", "tolerance"), [(1, 0.5, 0.1), (1, 0.9, 0.1), (1, 0.99, 0.15), (2, 0.9, 0.25)]
)
def test_gaussians_of_known_information(dimensions, correlation, tolerance):
    truth = -dimensions / 2 * math.log2(1 - correlation**2)
    found = estimate(mutual_information, *gaussians(1000, dimensions, correlation))
    assert found.bits == pytest.approx(truth, abs=tolerance)
    assert 0 < found.error < 0.2
    assert found.shuffled == pytest.approx(0, abs=0.15)


@pytest.mark.parametrize("dimensions", [1, 4])
def test_independent_variables_have_none(dimensions):
    assert mutual_information(*gaussians(1000, dimensions, 0.0)) == pytest.approx(0, abs=0.1)


def test_strong_dependence_is_underestimated_as_the_docstring_says():
    assert mutual_information(*gaussians(1000, 4, 0.99)) < -2 * math.log2(1 - 0.99**2)


def test_units_do_not_matter():
    x, y = gaussians(300, 2, 0.8)
    assert mutual_information(1000 * x, y / 7 + 3) == pytest.approx(mutual_information(x, y), abs=1e-6)


def test_repeated_values_are_no_information():
    x, y = gaussians(500, 2, 0.0)
    assert mutual_information(torch.zeros(500, 2), y) == pytest.approx(0, abs=0.15)
    assert abs(mutual_information(x.round(), y.round())) < 0.3


def test_classes_apart_tell_their_entropy_and_mixed_ones_nothing():
    generator = torch.Generator().manual_seed(0)
    classes = torch.randint(0, 3, (600,), generator=generator)
    x = torch.randn(600, 2, generator=generator)
    assert class_information(x, classes) == pytest.approx(0, abs=0.1)
    apart = x + 100 * classes[:, None]
    assert class_information(apart, classes) == pytest.approx(entropy(torch.bincount(classes)), abs=0.02)


def test_a_class_of_one_sample_is_left_out():
    x = torch.randn(20, 1, generator=torch.Generator().manual_seed(0))
    classes = torch.zeros(20, dtype=torch.int64)
    classes[3] = 1
    assert class_information(x, classes) == pytest.approx(0, abs=1e-6)
    assert class_information(x, torch.arange(20)) == 0


@pytest.mark.parametrize(("counts", "bits"), [([1, 1], 1), ([5, 0, 0], 0), ([1, 1, 1, 1], 2), ([3, 1], 0.811278), ([], 0)])
def test_entropy_of_counts(counts, bits):
    assert entropy(torch.tensor(counts)) == pytest.approx(bits, abs=1e-6)


def test_components_are_uncorrelated_of_variance_one_and_as_many_as_there_are():
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(0)) @ torch.diag(torch.tensor([9.0, 4, 1, 1, 1, 1]))
    kept = principal(x, 3)
    torch.testing.assert_close(kept.T @ kept / 200, torch.eye(3, dtype=torch.double))
    assert abs(torch.corrcoef(torch.stack([kept[:, 0], x[:, 0].double()]))[0, 1]) > 0.95
    assert principal(x[:, :1].expand(200, 6), 3).shape == (200, 1)


def test_too_few_samples_are_no_estimate():
    with pytest.raises(ValueError, match="3 samples for 3 neighbours"):
        mutual_information(torch.randn(3, 1), torch.randn(3, 1))
