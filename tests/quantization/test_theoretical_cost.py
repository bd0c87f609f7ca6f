"""Multiply-adds by precision against a count by hand, and what they add up to."""

import pytest
import torch

from leandetr.quantization import Dynamic, LowBit, WeightOnly, finish, quantize
from leandetr.quantization.theoretical_cost import Cost, theoretical_cost


@pytest.fixture
def batches(labels):
    pixels = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    return [{"pixel_values": pixels, "pixel_mask": torch.ones(2, 128, 128, dtype=torch.int64), "labels": labels(1, 2)}]


def test_the_speed_up_weighs_products_by_their_bits():
    assert Cost({32: 100}, 0, 0).speedup == 1
    assert Cost({4: 100}, 0, 0).speedup == 8
    assert Cost({4: 50, 8: 25, 32: 25}, 0, 0).speedup == pytest.approx(100 / (50 / 8 + 25 / 4 + 25))


def test_every_product_is_counted_once_whatever_it_is_computed_in(tiny_detector, batches):
    detector = tiny_detector("detr", "test_resnet")
    whole = theoretical_cost(detector)
    assert set(whole.multiply_adds) == {32}
    assert whole.speedup == 1
    trained = quantize(detector, LowBit(bits="4-2-8", calibration_images=2), batches)
    costs = [theoretical_cost(trained), theoretical_cost(finish(trained))]
    assert costs[0].multiply_adds == costs[1].multiply_adds
    for cost in (*costs, theoretical_cost(quantize(detector, Dynamic())), theoretical_cost(quantize(detector, WeightOnly()))):
        assert sum(cost.multiply_adds.values()) == sum(whole.multiply_adds.values())
    assert set(costs[0].multiply_adds) == {4, 8, 32}
    assert 3 < costs[0].speedup < 8
    assert costs[0].weight_bits < whole.weight_bits / 4


def test_attention_and_the_first_convolution_are_the_products_of_eight_bits(tiny_detector, batches):
    detector = quantize(tiny_detector("detr", "test_resnet"), LowBit(bits="4-4-8", calibration_images=2), batches)
    heads, width, queries, cells = 8, 64, 12, 16
    pairs = cells * cells + 3 * (queries * queries + queries * cells)  # one encoder layer, three decoder layers
    convolution = detector.model.model.backbone.model.conv1[0]
    first = 64 * 64 * convolution.weight.numel()  # half of 128 pixels a side
    assert theoretical_cost(detector).multiply_adds[8] == 2 * pairs * width + first
    assert heads * (width // heads) == width


def test_a_learned_query_that_is_a_view_of_its_parameter_is_counted(tiny_detector):
    detector = tiny_detector(
        "swin_detr", None, stages=[4], **{"backbone_config.embed_dim": 24, "backbone_config.depths": [1, 1, 1, 1]}
    )
    learning = [parameter.requires_grad for parameter in detector.model.parameters()]
    assert theoretical_cost(detector).multiply_adds[32] > 0
    assert [parameter.requires_grad for parameter in detector.model.parameters()] == learning
