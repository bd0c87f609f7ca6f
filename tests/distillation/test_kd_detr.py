"""KD-DETR asks both decoders the same questions and compares the answers one to one, weighted by what the teacher sees."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou

from leandetr.distillation import Distiller, build_terms
from leandetr.distillation.kd_detr import DistillationPoints, draw
from leandetr.errors import UserError
from leandetr.heads import Head
from leandetr.structures import ClassMap, DetectorOutput, Queries

FAMILIES = ["detr", "conditional_detr", "deformable_detr", "rt_detr_v2"]
PARTS = ("general_class", "general_box", "specific_class", "specific_box")


@pytest.fixture
def batch(labels):
    torch.manual_seed(0)
    pixel_mask = torch.ones(2, 128, 128, dtype=torch.int64)
    return {"pixel_values": torch.randn(2, 3, 128, 128), "pixel_mask": pixel_mask, "labels": labels(0, 0)}


@pytest.fixture
def answers(tiny_detector, batch):
    """answers(family): a student, a wider teacher with more queries and fewer stages, and their outputs."""

    def build(name: str):
        student, teacher = tiny_detector(name), tiny_detector(name, d_model=128, num_queries=15, decoder_layers=2)
        with torch.no_grad():
            taught = teacher(batch["pixel_values"], batch["pixel_mask"])
        return student, teacher, student(batch["pixel_values"], batch["pixel_mask"]), taught

    return build


def plain_loop(student: DetectorOutput, teacher: DetectorOutput, head: Head, foreground: bool) -> tuple[Tensor, Tensor]:
    """One layer, image and query at a time, against the teacher's last layer."""
    losses, total = [torch.zeros(()), torch.zeros(())], 0.0
    layers, images, count = student.logits.shape[:3]
    for image in range(images):
        for query in range(count):
            z, box = teacher.logits[-1, image, query], teacher.boxes[-1, image, query]
            weight = (z.sigmoid().max() if head == Head.SIGMOID else z.softmax(-1)[:-1].max()).item() if foreground else 1.0
            total += weight
            p = (z / 10).softmax(-1)
            for layer in range(layers):
                q, mine = (student.logits[layer, image, query] / 10).softmax(-1), student.boxes[layer, image, query]
                kl = (p * (p.log() - q.log())).mean() * 100
                giou = generalized_box_iou(*(box_convert(b[None], "cxcywh", "xyxy") for b in (mine, box)))[0, 0]
                losses[0] = losses[0] + weight * kl
                losses[1] = losses[1] + weight * (5 * (mine - box).abs().mean() + 2 * (1 - giou))
    return losses[0] / total, losses[1] / total


@pytest.mark.parametrize(("family", "foreground"), [("detr", True), ("deformable_detr", True), ("deformable_detr", False)])
def test_specific_points_equal_a_plain_loop(answers, batch, family, foreground):
    student, teacher, own, taught = answers(family)
    term = DistillationPoints.build(student, teacher, general=False, foreground=foreground)
    group = student.decode(term.queries(taught.queries, own), own.memory)
    found = term(own, taught, batch)
    expected = plain_loop(group, taught, student.head, foreground)
    torch.testing.assert_close((found["specific_class"], found["specific_box"]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["detr", "deformable_detr", "rt_detr_v2"])
def test_general_points_are_the_same_for_both_and_drawn_anew(answers, batch, family, monkeypatch):
    student, teacher, own, taught = answers(family)
    term = DistillationPoints.build(student, teacher, specific=False)
    asked = []
    for detector in (student, teacher):
        decode = detector.decode
        monkeypatch.setattr(detector, "decode", lambda q, m, *maps, decode=decode: asked.append(q) or decode(q, m))
    term(own, taught, batch)
    term(own, taught, batch)
    theirs, mine, theirs_again, _ = asked  # the teacher is asked first
    for field in ("content", "position"):
        value = getattr(theirs, field)
        if value is not None and not student.family.queries_from_encoder:
            torch.testing.assert_close(term.queries.adapter(value), getattr(mine, field))
    if theirs.reference is not None:
        torch.testing.assert_close(theirs.reference, mine.reference)
        assert not torch.equal(theirs.reference, theirs_again.reference)
    else:
        assert not torch.equal(theirs.position, theirs_again.position)


@pytest.mark.parametrize("family", ["deformable_detr", "rt_detr_v2"])
def test_a_student_equal_to_its_teacher_has_nothing_to_learn(tiny_detector, batch, family):
    detector = tiny_detector(family)
    own = detector(batch["pixel_values"], batch["pixel_mask"])
    # every layer is compared with the last: of the last alone the loss is zero
    term = DistillationPoints.build(detector, detector)
    queries = draw(own.queries)
    if family == "rt_detr_v2":
        queries = term.queries(queries, own)
    answer = detector.decode(queries, own.memory)
    last = replace(answer, logits=answer.logits[-1:], boxes=answer.boxes[-1:])
    torch.testing.assert_close(sum(term.losses(last, answer).values()), torch.zeros(()), atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_the_student_and_never_the_teacher(answers, batch, family):
    student, teacher, own, taught = answers(family)
    own.memory.tokens.retain_grad()
    term = DistillationPoints.build(student, teacher)
    parts = term(own, taught, batch)
    assert tuple(parts) == PARTS
    sum(parts.values()).backward()
    assert all(torch.isfinite(value) for value in parts.values())
    assert own.memory.tokens.grad.abs().sum() > 0
    assert all(p.grad is not None for p in term.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    assert {name.split(".")[0] for name in term.state_dict()} <= {"queries"}
    assert all("adapter" in name for name in term.state_dict())


def test_the_order_of_points_does_not_matter(answers, batch):
    student, teacher, own, taught = answers("deformable_detr")
    term = DistillationPoints.build(student, teacher, general=False)
    before = term(own, taught, batch)
    order = torch.randperm(15)
    queries = Queries(*(getattr(taught.queries, field)[:, order] for field in ("content", "position", "reference")))
    shuffled = replace(taught, queries=queries, logits=taught.logits[:, :, order], boxes=taught.boxes[:, :, order])
    torch.testing.assert_close(term(own, shuffled, batch), before, rtol=1e-4, atol=1e-5)


def test_the_teachers_classes_are_taken_in_the_students_order(tiny_detector, batch, classes):
    teacher, student = tiny_detector("detr"), tiny_detector("detr")
    plain = Distiller(student, teacher, build_terms("kd-detr", student, teacher)).eval()
    torch.manual_seed(1)
    expected = plain(**batch).logs["kd-detr/general_class"]
    order = [3, 0, 1, 4, 2]
    teacher.class_map = ClassMap(tuple(classes.names[i] for i in order), tuple(range(5)))
    head = teacher.model.class_labels_classifier
    head.weight.data, head.bias.data = head.weight.data[[*order, 5]], head.bias.data[[*order, 5]]
    permuted = Distiller(student, teacher, build_terms("kd-detr", student, teacher)).eval()
    torch.manual_seed(1)
    torch.testing.assert_close(permuted(**batch).logs["kd-detr/general_class"], expected, rtol=1e-3, atol=1e-6)


def test_other_families_and_no_points_are_refused(tiny_detector):
    student, teacher = tiny_detector("detr"), tiny_detector("deformable_detr")
    with pytest.raises(UserError, match=r"the kd-detr term cannot give .* whose queries mean something else"):
        DistillationPoints.build(student, teacher)
    with pytest.raises(UserError, match="both off; switch one on"):
        DistillationPoints.build(student, student, general=False, specific=False)
