"""Distillation queries learn the teacher's distributions: nothing where they agree, and what the equations say elsewhere."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch.distributions import Bernoulli, Categorical, Normal, kl_divergence

from leandetr.distillation import Distillation, Distiller, build_terms
from leandetr.distillation.soft_label import SoftBox, SoftClass, gaussian_divergence
from leandetr.errors import UserError
from leandetr.heads import Head
from leandetr.losses import box_cost

TERMS = [SoftClass, SoftBox]
HEADS = list(Head)
NOTHING = {"labels": []}


@pytest.fixture
def term(tiny_detector):
    """term(kind, student's head, teacher's head)"""
    families = {Head.SOFTMAX: "detr", Head.SIGMOID: "deformable_detr"}
    return lambda kind, student, teacher: kind(tiny_detector(families[student]), teacher)


def with_set(answers, grad: bool = False):
    """An output whose distillation queries gave these answers."""
    if grad:
        answers = replace(
            answers, logits=answers.logits.detach().requires_grad_(), boxes=answers.boxes.detach().requires_grad_()
        )
    return replace(answers, distillation=answers)


@pytest.mark.parametrize("kind", TERMS)
@pytest.mark.parametrize("head", HEADS)
def test_a_student_that_says_the_same_has_no_loss_and_no_gradient(term, output, kind, head):
    teacher = output(head=head)
    teacher = replace(teacher, logits=teacher.logits[-1:].expand(3, -1, -1, -1), boxes=teacher.boxes[-1:].expand(3, -1, -1, -1))
    student = with_set(teacher, grad=True)
    loss = term(kind, head, head)(student, teacher, NOTHING)["kl"]
    assert loss.item() == pytest.approx(0, abs=1e-5)
    loss.backward()
    leaf = student.distillation.logits if kind is SoftClass else student.distillation.boxes
    assert leaf.grad.abs().max() < 1e-5


@pytest.mark.parametrize("kind", TERMS)
@pytest.mark.parametrize(("student_head", "teacher_head"), itertools.product(HEADS, HEADS))
def test_order_of_queries_does_not_matter_and_the_teacher_gets_no_gradient(term, output, kind, student_head, teacher_head):
    soft = term(kind, student_head, teacher_head)
    student, teacher = with_set(output(head=student_head, queries=6, grad=True)), output(head=teacher_head, grad=True)
    loss = soft(student, teacher, NOTHING)["kl"]
    loss.backward()
    leaf = student.distillation.logits if kind is SoftClass else student.distillation.boxes
    assert leaf.grad.abs().sum() > 0
    assert all(tensor.grad is None for tensor in (teacher.logits, teacher.boxes, teacher.hidden))
    mine, theirs = torch.randperm(6), torch.randperm(8)
    answers = replace(student, logits=student.logits[:, :, mine], boxes=student.boxes[:, :, mine])
    teacher = replace(teacher, logits=teacher.logits[:, :, theirs], boxes=teacher.boxes[:, :, theirs])
    torch.testing.assert_close(soft(with_set(answers), teacher, NOTHING)["kl"], loss)


@pytest.mark.parametrize("kind", TERMS)
@pytest.mark.parametrize(("head", "queries"), [(Head.SIGMOID, 2), (Head.SOFTMAX, 2), (Head.SIGMOID, 4)])
def test_loss_is_the_best_assignments_weighted_divergence(term, output, kind, head, queries):
    """One image, every assignment tried; the teacher's most confident queries are the ones that teach."""
    soft = term(kind, head, head)
    teacher = output(images=1, queries=3, head=head)
    student = with_set(output(images=1, queries=queries, head=head))
    logits, boxes = teacher.logits[-1, 0], teacher.boxes[-1, 0]
    scores = (logits.sigmoid() if head == Head.SIGMOID else logits.softmax(-1)[:, :-1]).amax(-1)
    teaching = scores.argsort(descending=True)[: min(queries, 3)].tolist()

    def class_divergence(i, z):
        if head == Head.SOFTMAX:
            return kl_divergence(Categorical(logits=logits[i]), Categorical(logits=z))
        return kl_divergence(Bernoulli(logits=logits[i]), Bernoulli(logits=z)).sum()

    def box_divergence(i, box):
        mine, other = Normal(boxes[i, :2], boxes[i, 2:] / 2), Normal(box[:2], box[2:] / 2)
        return torch.log1p(kl_divergence(mine, other).sum())

    def cost(i, layer, j):
        z, box = student.distillation.logits[layer, 0, j], student.distillation.boxes[layer, 0, j]
        return class_divergence(i, z) + box_cost(box[None], boxes[i][None], 5.0, 2.0).squeeze()

    total = 0.0
    for layer in range(3):
        assignments = itertools.permutations(range(queries), len(teaching))
        best = min(assignments, key=lambda js, layer=layer: sum(cost(i, layer, j) for i, j in zip(teaching, js)))
        for i, j in zip(teaching, best):
            z, box = student.distillation.logits[layer, 0, j], student.distillation.boxes[layer, 0, j]
            total += scores[i] * (class_divergence(i, z) if kind is SoftClass else box_divergence(i, box))
    expected = total / max(sum(scores[i] for i in teaching), 1)
    torch.testing.assert_close(soft(student, teacher, NOTHING)["kl"], expected)


def test_divergence_of_boxes_is_that_of_gaussians_and_ignores_scale():
    torch.manual_seed(0)
    one, other = torch.rand(2, 50, 4) + 0.05
    expected = kl_divergence(Normal(one[:, :2], one[:, 2:] / 2), Normal(other[:, :2], other[:, 2:] / 2)).sum(-1)
    torch.testing.assert_close(gaussian_divergence(one, other), expected)
    torch.testing.assert_close(gaussian_divergence(one * 0.1, other * 0.1), expected)
    flat = torch.tensor([[0.5, 0.5, 0.0, 0.0]])
    assert torch.log1p(gaussian_divergence(one[:1], flat)).isfinite().all()


def test_both_terms_train_the_distillation_queries_of_a_real_student(tiny_detector, labels):
    torch.manual_seed(0)
    student, teacher = tiny_detector("detr", dropout=0.0), tiny_detector("rt_detr_v2", num_queries=9)
    terms = build_terms(Distillation(method="soft-label", options={"soft-class": {"queries": 5}}), student, teacher)
    assert {term.name: weight for term, weight in terms} == {"soft-class": 0.5, "soft-box": 2.5}
    distiller = Distiller(student, teacher, terms).train()
    mask = torch.ones(2, 128, 128, dtype=torch.int64)
    result = distiller(pixel_values=torch.randn(2, 3, 128, 128), pixel_mask=mask, labels=labels(0, 0))  # no objects at all
    result.loss.backward()
    assert torch.isfinite(result.loss)
    table = student.model.model.query_position_embeddings.weight.grad
    assert (table[12:].abs().sum(1) > 0).all()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    with pytest.raises(UserError, match="no table of learned queries"):
        build_terms("soft-box", tiny_detector("rt_detr_v2"), teacher)
