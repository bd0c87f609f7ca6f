"""The set loss equals the loss that transformers trains `detr` and `deformable_detr` with, and survives every batch."""

import pytest
import torch
from torch import distributed
from transformers import (
    ConditionalDetrConfig,
    DeformableDetrConfig,
    DetrConfig,
    LwDetrConfig,
    PreTrainedConfig,
    RTDetrConfig,
)
from transformers.loss.loss_deformable_detr import DeformableDetrForObjectDetectionLoss
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss

from leandetr.detectors.create import create
from leandetr.heads import Head
from leandetr.losses import Assignment, SetCriterion, box_losses, mean_over_ranks

LAYERS, IMAGES, QUERIES, CLASSES = 3, 3, 8, 5


def config_of(kind: type[PreTrainedConfig]) -> PreTrainedConfig:
    return kind(auxiliary_loss=True, decoder_layers=LAYERS, num_labels=CLASSES)


def boxes(*shape: int) -> torch.Tensor:
    return torch.cat([torch.rand(*shape, 2) * 0.6 + 0.2, torch.rand(*shape, 2) * 0.3 + 0.01], -1)


def objects(*counts: int) -> list[dict[str, torch.Tensor]]:
    return [{"class_labels": torch.randint(CLASSES, (n,)), "boxes": boxes(n)} for n in counts]


@pytest.mark.parametrize("counts", [(3, 1, 2), (0, 4, 10), (0, 0, 0)], ids=["few", "more objects than queries", "none"])
@pytest.mark.parametrize(
    ("kind", "head", "reference"),
    [
        (DetrConfig, Head.SOFTMAX, ForObjectDetectionLoss),
        (DeformableDetrConfig, Head.SIGMOID, DeformableDetrForObjectDetectionLoss),
        (ConditionalDetrConfig, Head.SIGMOID, DeformableDetrForObjectDetectionLoss),
    ],
)
def test_equals_transformers_with_auxiliary_layers(kind, head, reference, counts):
    torch.manual_seed(0)
    config = config_of(kind)
    logits = torch.randn(LAYERS, IMAGES, QUERIES, CLASSES + (head == Head.SOFTMAX))
    predicted, labels = boxes(LAYERS, IMAGES, QUERIES), objects(*counts)
    ours = SetCriterion.from_config(config, head)(logits, predicted, labels)
    theirs, _, _ = reference(logits[-1], labels, "cpu", predicted[-1], config, logits, predicted)
    torch.testing.assert_close(sum(ours.values()), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["smca_detr", "adamixer", "detr", "deformable_detr"])
def test_equals_the_loss_that_the_family_is_trained_with(classes, labels, name):
    torch.manual_seed(0)
    small = {"d_model": 64, "decoder_layers": 3, "num_queries": 12, "decoder_ffn_dim": 64}
    found = create(name, classes, (128, 128), backbone="resnet18", overrides=small).eval()
    with torch.no_grad():
        out = found(torch.randn(2, 3, 128, 128), torch.ones(2, 128, 128, dtype=torch.int64), labels=labels(2, 1))
        ours = SetCriterion.from_config(found.config, found.head)(out.logits, out.boxes, labels(2, 1))
    torch.testing.assert_close(sum(ours.values()), out.loss, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("head", Head)
def test_a_given_assignment_is_used_instead_of_the_cheapest(head):
    torch.manual_seed(0)
    criterion = SetCriterion.from_config(config_of(DetrConfig if head == Head.SOFTMAX else DeformableDetrConfig), head)
    labels = objects(2)
    logits, predicted = torch.zeros(1, 1, 4, CLASSES + (head == Head.SOFTMAX)), boxes(1, 1, 4)
    predicted[0, 0, :2] = labels[0]["boxes"]
    crossed = Assignment(*(torch.tensor(values) for values in ([0, 0], [0, 0], [0, 1], [1, 0])))
    own, given = criterion(logits, predicted, labels), criterion(logits, predicted, labels, crossed)
    assert own["bbox"] == 0
    expected = 5 * 2 * (labels[0]["boxes"][0] - labels[0]["boxes"][1]).abs().sum() / 2
    torch.testing.assert_close(given["bbox"], expected)


def test_a_box_without_area_has_a_finite_loss_and_gradient():
    empty = torch.tensor([[0.5, 0.5, 1e-12, 1e-12], [0.5, 0.5, 0.0, 0.2]], requires_grad=True)
    l1, giou = box_losses(empty, empty.detach().clone())
    (l1.sum() + giou.sum()).backward()
    assert torch.isfinite(giou).all()
    assert torch.isfinite(empty.grad).all()


def test_equal_boxes_cost_nothing_however_small():
    small = torch.tensor([[0.3, 0.7, 0.004, 0.003]])
    l1, giou = box_losses(small, small)
    assert l1 == giou == 0


@pytest.mark.parametrize(
    ("kind", "head", "weights"),
    [
        (DetrConfig, Head.SOFTMAX, (1, 1)),
        (DeformableDetrConfig, Head.SIGMOID, (1, 1)),
        (LwDetrConfig, Head.SIGMOID, (2, 1)),
        (RTDetrConfig, Head.SIGMOID, (2, 1)),
    ],
)
def test_weights_come_from_the_configuration(kind, head, weights):
    criterion = SetCriterion.from_config(kind(), head)
    assert (criterion.matcher.class_cost, criterion.class_weight) == weights
    assert (criterion.matcher.bbox_cost, criterion.matcher.giou_cost) == (5, 2)
    assert (criterion.bbox_weight, criterion.giou_weight) == (5, 2)


def test_count_is_averaged_over_processes_and_at_least_one(monkeypatch):
    assert mean_over_ranks(0, torch.device("cpu")) == 1
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 4)
    monkeypatch.setattr(distributed, "all_reduce", lambda count: count.add_(7))  # what the three others hold
    assert mean_over_ranks(3, torch.device("cpu")) == 2.5
