"""The set loss equals the loss that transformers trains every family with, and survives every batch."""

import pytest
import torch
from torch import distributed
from transformers import (
    ConditionalDetrConfig,
    DeformableDetrConfig,
    DetrConfig,
    PreTrainedConfig,
)
from transformers.loss.loss_d_fine import DFineLoss
from transformers.loss.loss_deformable_detr import DeformableDetrForObjectDetectionLoss
from transformers.loss.loss_deimv2 import Deimv2Loss
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss
from transformers.loss.loss_lw_detr import LwDetrHungarianMatcher, LwDetrImageLoss
from transformers.loss.loss_rt_detr import RTDetrLoss

from leandetr.detectors.names import MODELS
from leandetr.heads import ClassLoss
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
    ("kind", "class_loss", "reference"),
    [
        (DetrConfig, ClassLoss.CROSS_ENTROPY, ForObjectDetectionLoss),
        (DeformableDetrConfig, ClassLoss.FOCAL, DeformableDetrForObjectDetectionLoss),
        (ConditionalDetrConfig, ClassLoss.FOCAL, DeformableDetrForObjectDetectionLoss),
    ],
)
def test_equals_transformers_with_auxiliary_layers(kind, class_loss, reference, counts):
    torch.manual_seed(0)
    config = config_of(kind)
    logits = torch.randn(LAYERS, IMAGES, QUERIES, class_loss.head.columns(CLASSES))
    predicted, labels = boxes(LAYERS, IMAGES, QUERIES), objects(*counts)
    ours = SetCriterion.from_config(config, class_loss)(logits, predicted, labels)
    theirs, _, _ = reference(logits[-1], labels, "cpu", predicted[-1], config, logits, predicted)
    torch.testing.assert_close(sum(ours.values()), theirs, rtol=1e-4, atol=1e-4)


def loss_of_transformers(found, logits, boxes, labels):
    """What transformers trains the decoder's main queries of a detector with, without proposals and denoising."""
    config, kind = found.config, found.config.model_type
    answers = [{"logits": z, "pred_boxes": b} for z, b in zip(logits, boxes)]
    layers = answers[-1] | {"auxiliary_outputs": answers[:-1]}
    if kind in ("lw_detr", "rf_detr"):
        matcher = LwDetrHungarianMatcher(config.class_cost, config.bbox_cost, config.giou_cost)
        criterion = LwDetrImageLoss(matcher, config.num_labels, config.focal_alpha, ["labels", "boxes"], config.group_detr)
        parts = criterion.eval()(layers, labels)
        weights = {
            "ce": config.class_loss_coefficient,
            "bbox": config.bbox_loss_coefficient,
            "giou": config.giou_loss_coefficient,
        }
        return sum(weights[name.split("_")[1]] * value for name, value in parts.items())
    criteria = {"rt_detr": RTDetrLoss, "rt_detr_v2": RTDetrLoss, "d_fine": DFineLoss, "deimv2": Deimv2Loss}
    if kind in criteria:
        return sum(criteria[kind](config)(layers, labels).values())
    config.auxiliary_loss = True
    return found.model.loss_function(logits[-1], labels, "cpu", boxes[-1], config, logits, boxes)[0]


@pytest.mark.parametrize("name", MODELS)
def test_equals_the_loss_that_the_family_is_trained_with(tiny_detector, labels, name):
    """In value and gradient, for answers near the objects and far from them."""
    found, objects = tiny_detector(name), labels(3, 1)
    torch.manual_seed(0)
    with torch.no_grad():
        out = found(torch.randn(2, 3, 128, 128), torch.ones(2, 128, 128, dtype=torch.int64))
    near = torch.stack([target["boxes"].repeat(12, 1)[:12] for target in objects]).expand_as(out.boxes)
    logits = (out.logits + torch.randn_like(out.logits)).requires_grad_()
    answers = (near + (out.boxes - near) * torch.rand_like(out.boxes[..., :1])).clamp(1e-3, 1 - 1e-3).requires_grad_()

    def with_gradients(loss):
        return loss, *torch.autograd.grad(loss, (logits, answers))

    ours = sum(SetCriterion.from_config(found.config, found.family.class_loss)(logits, answers, objects).values())
    theirs = loss_of_transformers(found, logits, answers, objects)
    torch.testing.assert_close(with_gradients(ours), with_gradients(theirs), rtol=1e-5, atol=1e-5)


def test_boxes_of_d_fine_that_reach_out_of_the_image_are_judged_as_transformers_does(tiny_detector, labels):
    found = tiny_detector("d_fine", num_queries=3)
    logits, answers = torch.zeros(1, 1, 3, 5), torch.tensor([[[[-0.1, 0.5, 0.4, 1.2], [0.5] * 4, [0.7, 0.8, 0.2, 0.1]]]])
    ours = SetCriterion.from_config(found.config, found.family.class_loss)(logits, answers, labels(3))
    theirs = DFineLoss(found.config)({"logits": logits[0], "pred_boxes": answers[0].clamp(min=0, max=1)}, labels(3))
    torch.testing.assert_close(sum(ours.values()), sum(theirs.values()))


@pytest.mark.parametrize("class_loss", [ClassLoss.CROSS_ENTROPY, ClassLoss.FOCAL])
def test_a_given_assignment_is_used_instead_of_the_cheapest(class_loss):
    torch.manual_seed(0)
    kind = DetrConfig if class_loss is ClassLoss.CROSS_ENTROPY else DeformableDetrConfig
    criterion = SetCriterion.from_config(config_of(kind), class_loss)
    labels = objects(2)
    logits, predicted = torch.zeros(1, 1, 4, class_loss.head.columns(CLASSES)), boxes(1, 1, 4)
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


def test_count_is_averaged_over_processes_and_at_least_one(monkeypatch):
    assert mean_over_ranks(0, torch.device("cpu")) == 1
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 4)
    monkeypatch.setattr(distributed, "all_reduce", lambda count: count.add_(7))  # what the three others hold
    assert mean_over_ranks(3, torch.device("cpu")) == 2.5
