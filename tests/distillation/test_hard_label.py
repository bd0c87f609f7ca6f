"""Distillation queries learn from the teacher's confident detections, half and half with the annotations, and stay apart."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from leandetr.distillation import Distillation, Distiller, build_terms
from leandetr.distillation.hard_label import HardLabel
from leandetr.distillation.orthogonality import Orthogonality
from leandetr.errors import UserError
from leandetr.heads import Head
from leandetr.losses import SetCriterion


@pytest.fixture
def batch(labels):
    torch.manual_seed(0)
    pixel_mask = torch.ones(2, 128, 128, dtype=torch.int64)
    return {"pixel_values": torch.randn(2, 3, 128, 128), "pixel_mask": pixel_mask, "labels": labels(2, 0)}


def sure(output, *detections: tuple[int, int, int, float]):
    """The output with a score below 0.01 for everything but (image, query, class, score)."""
    softmax = output.logits.shape[-1] == 6
    logits = torch.full_like(output.logits, -9.0)
    if softmax:
        logits[..., -1] = 0
    for image, query, label, score in detections:
        odds = torch.tensor(score).logit()
        logits[-1, image, query, label] = odds
    return replace(output, logits=logits)


@pytest.mark.parametrize("head", Head)
def test_pseudo_labels_are_the_detections_over_the_threshold_and_no_others(tiny_detector, output, head):
    teacher = sure(output(head=head), (0, 3, 2, 0.9), (0, 5, 4, 0.45), (1, 1, 0, 0.55))
    term = HardLabel(tiny_detector("detr"), head)
    first, second = term.pseudo_labels(teacher, {})
    assert (first["class_labels"].tolist(), second["class_labels"].tolist()) == ([2], [0])
    torch.testing.assert_close(first["boxes"], teacher.boxes[-1, 0, [3]])
    torch.testing.assert_close(second["boxes"], teacher.boxes[-1, 1, [1]])
    lower = HardLabel(tiny_detector("detr"), head, threshold=0.4).pseudo_labels(teacher, {})
    assert [len(found["boxes"]) for found in lower] == [2, 1]


@pytest.mark.parametrize("family", ["detr", "conditional_detr", "deformable_detr"])
def test_loss_is_half_the_objects_and_half_the_pseudo_labels(tiny_detector, batch, family):
    student, teacher = tiny_detector(family, dropout=0.0), tiny_detector("detr", dropout=0.0, d_model=32)
    with torch.no_grad():
        teacher.model.class_labels_classifier.bias[1] += 9  # the untrained teacher is sure of something
    terms = build_terms(Distillation(method="hard-label", options={"hard-label": {"queries": 5}}), student, teacher)
    distiller = Distiller(student, teacher, terms).train()
    result = distiller(**batch)
    own = student(**batch)
    taught = distiller.terms["hard-label"].pseudo_labels(distiller.teacher(batch)[0], batch)
    assert all(len(found["boxes"]) > 0 for found in taught)
    answers = own.distillation
    assert answers.logits.shape[2] == 5
    hard = sum(
        SetCriterion.from_config(student.config, student.family.class_loss)(answers.logits, answers.boxes, taught).values()
    )
    torch.testing.assert_close(result.loss, 0.5 * own.loss + 0.5 * hard)
    result.loss.backward()
    assert all(p.grad is None for p in teacher.parameters())
    table = student.model.model.query_position_embeddings.weight.grad
    assert (table[:12].abs().sum(1) > 0).all()
    assert (table[12:].abs().sum(1) > 0).all()


def test_object_queries_never_see_the_pseudo_labels(tiny_detector, output, batch):
    student = tiny_detector("detr")
    HardLabel.prepare(student, queries=4)
    term = HardLabel(student, Head.SIGMOID)
    own = student(batch["pixel_values"], batch["pixel_mask"])
    own.logits.retain_grad()
    own.distillation.logits.retain_grad()
    sum(term(own, sure(output(), (0, 0, 1, 0.9)), batch).values()).backward()
    assert own.logits.grad is None
    assert own.distillation.logits.grad.abs().sum() > 0


def test_an_image_without_confident_detections_teaches_no_object(tiny_detector, output, batch):
    student = tiny_detector("deformable_detr")
    HardLabel.prepare(student)
    term = HardLabel(student, Head.SIGMOID)
    parts = term(student(batch["pixel_values"], batch["pixel_mask"]), sure(output()), batch)
    assert parts["bbox"] == parts["giou"] == 0
    assert torch.isfinite(parts["class"])


def test_the_order_of_the_teachers_queries_does_not_matter(tiny_detector, output, batch):
    student = tiny_detector("detr")
    HardLabel.prepare(student)
    term = HardLabel(student, Head.SIGMOID)
    own, teacher = student(batch["pixel_values"]), sure(output(), (0, 3, 2, 0.9), (0, 5, 4, 0.8), (1, 1, 0, 0.6))
    order = torch.randperm(8)
    shuffled = replace(teacher, logits=teacher.logits[:, :, order], boxes=teacher.boxes[:, :, order])
    torch.testing.assert_close(term(own, shuffled, batch), term(own, teacher, batch))


def test_a_threshold_that_leaves_no_label_in_the_whole_set_is_refused(tiny_detector, batch):
    student, teacher = tiny_detector("detr"), tiny_detector("detr")
    with torch.no_grad():
        teacher.model.class_labels_classifier.bias[5] += 9  # no-object everywhere
    distiller = Distiller(student, teacher, build_terms("hard-label", student, teacher))
    with pytest.raises(UserError, match=r"no detection of the teacher on any training image scores above 0\.5"):
        distiller.check([batch, batch])
    with torch.no_grad():
        teacher.model.class_labels_classifier.bias[1] += 20
    read = []
    distiller.check(read.append(index) or batch for index in range(3))
    assert read == [0]  # no more than it takes


def test_bad_options_and_students_are_refused(tiny_detector):
    with pytest.raises(UserError, match="threshold of the hard-label term is 1"):
        HardLabel(tiny_detector("detr"), Head.SIGMOID, threshold=1)
    with pytest.raises(UserError, match="no table of learned queries"):
        HardLabel.prepare(tiny_detector("rt_detr_v2"))
    with pytest.raises(UserError, match=r"margin of the orthogonality term is -0\.1"):
        Orthogonality(margin=-0.1)


def test_orthogonality_is_the_mean_square_of_cosines_beyond_the_margin(output):
    student = output()
    student.distillation = output(queries=3)
    total = 0.0
    for layer in range(3):
        for image in range(2):
            for one in student.hidden[layer, image]:
                for other in student.distillation.hidden[layer, image]:
                    total += max(abs(F.cosine_similarity(one, other, dim=0).item()) - 0.2, 0) ** 2
    found = Orthogonality(margin=0.2)(student, None, {})["cosine"]
    assert found.item() == pytest.approx(total / (3 * 2 * 8 * 3), rel=1e-5)


def test_orthogonality_parts_the_sets_and_needs_both(output):
    student = output(grad=True)
    with pytest.raises(UserError, match="add the method hard-label or soft-label"):
        Orthogonality()(student, None, {})
    student.distillation = output(queries=3, grad=True)
    before = Orthogonality()(student, None, {})["cosine"]
    before.backward()
    with torch.no_grad():
        moved = student.distillation.hidden - 20 * student.distillation.hidden.grad
    after = Orthogonality()(replace(student, distillation=replace(student.distillation, hidden=moved)), None, {})["cosine"]
    assert after < before
    assert student.hidden.grad.abs().sum() > 0
