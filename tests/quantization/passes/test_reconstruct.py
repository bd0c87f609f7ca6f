"""Rounding by what it does to detections: the objective against a slow plain version, and that it is lowered."""

import copy
import itertools

import pytest
import torch
from torch.distributions import Bernoulli, Categorical, kl_divergence
from torchvision.ops import box_convert, generalized_box_iou

from leandetr.heads import Head
from leandetr.quantization import LowBit, WeightOnly, finish, quantize
from leandetr.quantization.layers.groups import GroupRounding, quantize_groups
from leandetr.quantization.passes import reconstruct
from leandetr.quantization.passes.apply import apply
from leandetr.quantization.passes.calibrate import CalibrationImages
from leandetr.quantization.passes.reconstruct import distance
from leandetr.structures import DetectorOutput, Memory, Queries


@pytest.fixture
def batches(labels):
    images = torch.randn(4, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    return [{"pixel_values": images, "pixel_mask": torch.ones(4, 128, 128, dtype=torch.int64), "labels": labels(1, 2, 0, 3)}]


def output(seed):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    boxes = torch.rand(2, 3, 4, 4, generator=generator, dtype=torch.float64) * 0.5 + 0.2
    memory = Memory(draw(3, 5, 8), [(5, 1)], {})
    logits = draw(2, 3, 4, 6)
    logits[1, 2, :2, :-1] = -9.0  # queries that see nothing
    return DetectorOutput(logits, boxes, draw(2, 3, 4, 8), Queries(), memory)


@pytest.mark.parametrize("head", Head)
def test_the_distance_is_the_written_equation(head):
    found, wanted = output(0), output(1)
    divergences, sure, of_query = [], [], []
    for layer, image, query in itertools.product(range(2), range(3), range(4)):
        p, q = (answer.logits[layer, image, query] for answer in (wanted, found))
        if head is Head.SOFTMAX:
            divergence = kl_divergence(Categorical(logits=p), Categorical(logits=q))
        else:
            divergence = kl_divergence(Bernoulli(logits=p), Bernoulli(logits=q)).sum()
        b, a = (answer.boxes[layer, image, query] for answer in (wanted, found))
        giou = generalized_box_iou(*(box_convert(box[None], "cxcywh", "xyxy") for box in (a, b)))
        divergences.append(divergence.item())
        highest = p.softmax(-1)[:-1].max().item() if head is Head.SOFTMAX else p.sigmoid().max().item()
        sure.append(highest if highest >= 0.05 else 0.0)
        of_query.append(divergences[-1] + 5 * (a - b).abs().sum().item() + 2 * (1 - giou.item()))
    expected = sum(w * value for w, value in zip(sure, of_query, strict=True)) / sum(sure)
    expected += sum(divergences) / len(divergences)
    for a, b in ((found.memory.tokens, wanted.memory.tokens), (found.hidden, wanted.hidden)):
        expected += ((a - b) ** 2).sum().item() / (b**2).sum().item()
    assert distance(found, wanted, head).item() == pytest.approx(expected, rel=1e-5)
    assert distance(wanted, wanted, head).item() == pytest.approx(0, abs=1e-6)


def test_weights_begin_at_the_integers_that_were_chosen():
    weight = torch.randn(8, 64, 3, 3, generator=torch.Generator().manual_seed(0))
    _, scale = quantize_groups(weight, 4, 32)
    rounding = GroupRounding(scale, 4)
    chosen = torch.randint(-8, 8, weight.shape, dtype=torch.int8)
    begun = rounding.begin(weight, chosen)
    assert torch.equal(rounding.integers(begun), chosen)
    steps = scale.float().repeat_interleave(32, 1)
    torch.testing.assert_close(rounding(begun), chosen * steps)
    assert ((begun - weight).abs() <= (chosen * steps - weight).abs()).all()


def from_float(rounded, original, batches):
    (batch,) = batches
    with torch.no_grad():
        found, wanted = reconstruct.answers(rounded, original, batch["pixel_values"], batch["pixel_mask"])
        return distance(found, wanted, original.head).item()


@pytest.fixture
def short(monkeypatch):
    """Few steps; small ones, because untrained answers are near to begin with."""
    for name, value in {"STEPS": 24, "JUDGES": 4, "GRID_RATE": 3e-3}.items():
        monkeypatch.setattr(reconstruct, name, value)


@pytest.mark.parametrize("name", ["detr", "rt_detr_v2"])  # whose queries are learned, and chosen
def test_both_detectors_are_asked_the_same(tiny_detector, batches, name):
    detector = tiny_detector(name, backbone="test_resnet")
    (batch,) = batches
    rounded = quantize(detector, WeightOnly(bits=2, calibration_images=0))
    with torch.no_grad():
        found, wanted = reconstruct.answers(rounded, detector, batch["pixel_values"], batch["pixel_mask"])
    for key in ("content", "position", "reference"):
        own, other = getattr(found.queries, key), getattr(wanted.queries, key)
        assert (own is None and other is None) or torch.equal(own, other)


def test_detections_in_few_bits_come_nearer_to_the_float_ones(tiny_detector, batches, short):
    detector = tiny_detector("detr", backbone="test_resnet")
    rounded = quantize(detector, LowBit(bits="4-4-8", calibration_images=4), batches)
    images = CalibrationImages(batches, 4, detector)
    by_layer = copy.deepcopy(rounded)
    reconstruct.round_layers(by_layer, images)
    reconstruct.reconstruct_grids(rounded, detector, images)
    assert from_float(finish(rounded), detector, batches) < 0.98 * from_float(finish(by_layer), detector, batches)


@pytest.mark.slow
def test_detections_of_weights_in_groups_come_nearer_to_the_float_ones(tiny_detector, batches, short, monkeypatch):
    for name, value in {"STEPS": 48, "WEIGHT_RATE": 0.02}.items():  # as much as makes weights reach the next integer
        monkeypatch.setattr(reconstruct, name, value)
    detector, alone = tiny_detector("detr", backbone="test_resnet"), WeightOnly(bits=3, calibration_images=4)
    before = from_float(apply(detector, alone, batches, by_layer=True), detector, batches)
    assert from_float(quantize(detector, alone, batches), detector, batches) < 0.9 * before


@pytest.mark.slow
def test_what_helps_nothing_is_taken_back(tiny_detector, batches, short, monkeypatch):
    monkeypatch.setattr(reconstruct, "WEIGHT_RATE", 1e3)
    detector, alone = tiny_detector("detr", backbone="test_resnet"), WeightOnly(bits=4, calibration_images=4)
    before = from_float(apply(detector, alone, batches, by_layer=True), detector, batches)
    assert from_float(quantize(detector, alone, batches), detector, batches) == pytest.approx(before)
