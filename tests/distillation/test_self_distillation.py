"""A student as its own teacher: its last layer for the others, and its moving average for all."""

import copy

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torchvision.ops import box_convert, box_iou, generalized_box_iou

from leandetr.distillation import Distiller, build_terms
from leandetr.distillation.average import AverageTeacher
from leandetr.distillation.self_distillation import SelfDistillation
from leandetr.heads import Head
from leandetr.losses import HungarianMatcher
from leandetr.structures import DetectorOutput
from leandetr.training.ema import MovingAverage


def term(head: Head) -> SelfDistillation:
    return SelfDistillation(head, HungarianMatcher(0.0, 5.0, 2.0, head))


def corners(box):
    return box_convert(box[None], "cxcywh", "xyxy")


@pytest.mark.parametrize("head", Head)
@pytest.mark.parametrize("counts", [(3, 1), (0, 0)], ids=["objects", "none"])
def test_equals_a_plain_loop(output, labels, head, counts):
    student, objects = output(layers=3, queries=6, head=head), labels(*counts)
    logits, boxes, t = student.logits, student.boxes, 2.0 if head == Head.SIGMOID else 1.0
    matched = {}
    for b in range(2):
        wanted = objects[b]["boxes"]
        cost = torch.zeros(6, len(wanted))
        for i in range(6):
            for j in range(len(wanted)):
                giou = generalized_box_iou(corners(boxes[2, b, i]), corners(wanted[j]))[0, 0]
                cost[i, j] = 5 * (boxes[2, b, i] - wanted[j]).abs().sum() - 2 * giou
        for i, j in zip(*linear_sum_assignment(cost)):
            matched[b, i] = box_iou(corners(boxes[2, b, i]), corners(wanted[j]))[0, 0]
    expected = {"class": torch.zeros(()), "box": torch.zeros(())}
    for layer in (0, 1):
        for name in expected:
            values = {True: [], False: []}
            for b in range(2):
                for i in range(6):
                    z, last = logits[layer, b, i], logits[2, b, i]
                    p = last.sigmoid() if head == Head.SIGMOID else last.softmax(-1)[:-1]
                    omega = matched.get((b, i), p.max())
                    if name == "box":
                        giou = generalized_box_iou(corners(boxes[layer, b, i]), corners(boxes[2, b, i]))[0, 0]
                        k = 5 * (boxes[layer, b, i] - boxes[2, b, i]).abs().sum() + 2 * (1 - giou)
                    elif head == Head.SIGMOID:
                        p, q = (last / t).sigmoid(), (z / t).sigmoid()
                        k = t**2 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum()
                    else:
                        p, q = last.softmax(-1), z.softmax(-1)
                        k = (p * (p / q).log()).sum()
                    values[(b, i) in matched].append(omega * k)
            roots = {kind: len(found) ** 0.5 for kind, found in values.items()}
            means = {kind: sum(found) / len(found) if found else 0.0 for kind, found in values.items()}
            expected[name] += sum(roots[kind] * means[kind] for kind in values) / sum(roots.values())
    torch.testing.assert_close(term(head)(student, None, {"labels": objects}), expected, rtol=1e-4, atol=1e-5)


def test_the_last_layer_is_taught_nothing_and_one_layer_has_nothing_to_teach(output, labels):
    student = output(grad=True)
    sum(term(Head.SIGMOID)(student, None, {"labels": labels(3, 1)}).values()).backward()
    assert student.logits.grad[-1].abs().sum() == student.boxes.grad[-1].abs().sum() == 0
    assert student.logits.grad[:-1].abs().amin() > 0
    alone = output(layers=1)
    assert sum(term(Head.SIGMOID)(alone, None, {"labels": labels(3, 1)}).values()) == 0


@pytest.fixture
def batch(labels):
    torch.manual_seed(0)
    mask = torch.ones(2, 128, 128, dtype=torch.int64)
    return {"pixel_values": torch.randn(2, 3, 128, 128), "pixel_mask": mask, "labels": labels(2, 1)}


def test_the_average_answers_as_it_does_when_it_is_applied(tiny_detector, batch):
    student = tiny_detector("rt_detr_v2")
    teacher, average = AverageTeacher(student), MovingAverage(student, 0.9)
    part = 0.0
    teacher.follow(lambda: average.shadow, lambda: part)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    average.update()
    own = copy.deepcopy(student.state_dict())
    taught = teacher(batch)[0]
    with average.applied(), torch.no_grad():
        expected: DetectorOutput = student(batch["pixel_values"], batch["pixel_mask"])
    torch.testing.assert_close((taught.logits, taught.boxes), (expected.logits, expected.boxes))
    torch.testing.assert_close(student.state_dict(), own, rtol=0, atol=0)
    assert (student(batch["pixel_values"], batch["pixel_mask"]).logits - taught.logits).abs().max() > 1e-4
    weak = teacher.trust
    part = 0.1
    assert (round(weak, 4), teacher.trust) == (0.0067, 1.0)


def test_terms_that_need_a_teacher_count_by_its_trust_and_others_wholly(tiny_detector, batch):
    student = tiny_detector("rt_detr_v2")
    teacher = AverageTeacher(student)
    distiller = Distiller(student, teacher, build_terms("logits,self-distillation", student, teacher)).train()
    teacher.follow(lambda: dict(student.named_parameters()) | dict(student.named_buffers()), lambda: 0.05)
    answer = distiller(**batch)
    answer.loss.backward()
    logs = answer.logs
    parts = {name: sum(logs[key] for key in logs if key.startswith(f"{name}/")) for name in ("logits", "self-distillation")}
    for name, trust in (("logits", 0.2865), ("self-distillation", 1.0)):
        torch.testing.assert_close(logs[f"share/{name}"] * answer.loss.detach(), parts[name] * trust, rtol=1e-3, atol=1e-4)
    assert all(p.grad is None for p in teacher.detector.parameters())


def test_a_teacher_that_no_term_needs_is_not_asked(tiny_detector, batch, monkeypatch):
    student = tiny_detector("detr")
    teacher = AverageTeacher(student)
    monkeypatch.setattr(teacher.detector, "forward", None)
    Distiller(student, teacher, build_terms("self-distillation", student, teacher))(**batch).loss.backward()


def test_what_cannot_be_is_said(run, tmp_path):
    run("data", "shapes", "--out", tmp_path / "shapes", "--train", 4, "--val", 2, "--image-size", 64, 64)
    common = ("--data", tmp_path / "shapes", "--student", "detr", "--backbone", "test_resnet", "--image-size", 64, 64)
    distil = ("distill", *common, "--teacher", "self", "--set", "model.num_queries=5", "--out", tmp_path / "out")
    status, _, said = run(*distil, "--method", "logits", "--set", "training.ema=0")
    assert (status, "training.ema is 0" in said) == (2, True)
    status, _, said = run(*distil, "--method", "logits", "--set", "training.views=2", "--cache-teacher", tmp_path / "cache")
    assert (status, "change in every step" in said) == (2, True)
