"""Queries are heard as the attention computes with them, and their entropies are the textbook's."""

import math

import pytest
import torch

from leandetr.analysis.query_distributions import code_entropy, distributions, gaussian_entropy, listening
from leandetr.detectors.alignment import align_queries


def heard(detector, size=(96, 96)):
    torch.manual_seed(0)
    with torch.inference_mode(), listening(detector) as collected:
        detector(torch.randn(2, 3, *size))
    return distributions(collected, detector)


@pytest.mark.parametrize("family", ["detr", "conditional_detr", "deformable_detr", "rt_detr_v2"])
def test_aligned_queries_have_mean_zero_and_variance_one_and_plain_ones_stay(build, family):
    found = heard(build(family))
    assert not found.aligned
    assert len(found.before) == 3
    assert all(torch.equal(before, after) for before, after in zip(found.before, found.after))
    detector = build(family)
    align_queries(detector.model, "cross")
    found = heard(detector)
    assert found.aligned
    for before, after in zip(found.before, found.after):
        assert before.shape == after.shape
        assert after.mean(1).abs().max() < 1e-3
        torch.testing.assert_close(after.std(1), torch.ones(len(after)), atol=0.02, rtol=0)
        assert (before.std(1) - 1).abs().max() > 0.02


def test_the_listener_leaves_no_trace(build):
    detector = build("detr")
    pixels = torch.randn(1, 3, 96, 96)
    with torch.inference_mode():
        before = detector(pixels).logits
        first = heard(detector)
        torch.testing.assert_close(detector(pixels).logits, before)
    torch.testing.assert_close(heard(detector).before, first.before)


def test_a_decoder_without_attention_to_the_image_has_none(build):
    small = {"d_model": 32, "decoder_layers": 2, "num_queries": 6, "decoder_ffn_dim": 32}
    assert heard(build("adamixer", small=small)) is None


def test_entropy_of_a_gaussian():
    values = 3 * torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    assert gaussian_entropy(values) == pytest.approx(0.5 * math.log2(2 * math.pi * math.e * 9), abs=0.01)


def test_codes_of_even_values_are_worth_their_bits_and_of_one_value_nothing():
    assert code_entropy(torch.linspace(0, 1, 100_001), 4) == pytest.approx(4, abs=0.05)
    assert code_entropy(torch.ones(50), 4) == 0
    assert code_entropy(torch.tensor([0.0, 1.0]), 4) == 1


def test_an_outlier_costs_entropy():
    values = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    assert code_entropy(torch.cat([values, torch.tensor([100.0])]), 4) < 1 < code_entropy(values, 4)
