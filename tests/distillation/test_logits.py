"""Hungarian-matching logits distillation promises eq. 2-4 as a plain loop computes them, and nothing to learn from oneself."""

import itertools
from dataclasses import replace

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_convert, generalized_box_iou

from leandetr.distillation.logits import MATCHINGS, HungarianLogits, teaching_stages
from leandetr.errors import UserError
from leandetr.heads import Head
from leandetr.losses import HungarianMatcher
from leandetr.structures import Proposals

HEADS = [(Head.SIGMOID, Head.SIGMOID), (Head.SOFTMAX, Head.SOFTMAX), (Head.SIGMOID, Head.SOFTMAX), (Head.SOFTMAX, Head.SIGMOID)]


def term(student_head: Head = Head.SIGMOID, teacher_head: Head = Head.SIGMOID, **options) -> HungarianLogits:
    return HungarianLogits(student_head, HungarianMatcher(2.0, 5.0, 2.0, teacher_head), **options)


def giou(a: Tensor, b: Tensor) -> Tensor:
    return generalized_box_iou(*(box_convert(boxes, "cxcywh", "xyxy") for boxes in (a, b)))


def class_loss(logits: Tensor, student_head: Head, teacher_logits: Tensor, teacher_head: Head) -> Tensor:
    """One student's query against one teacher's query."""
    if student_head == teacher_head == Head.SOFTMAX:
        return F.kl_div(logits.log_softmax(-1), teacher_logits.softmax(-1), reduction="sum")
    probabilities = [
        values.sigmoid() if head == Head.SIGMOID else values.softmax(-1)[:-1]
        for values, head in ((logits, student_head), (teacher_logits, teacher_head))
    ]
    return F.binary_cross_entropy(*probabilities, reduction="sum")


def cheapest_with_all(columns: list[int], cost: Tensor) -> list[tuple[int, int]]:
    """Of the one-to-one assignments of all N rows to some of M > N columns that leave out as few of these as they must, the
    cheapest; by trying every choice of the other columns."""
    others = [column for column in range(cost.shape[1]) if column not in columns]
    kept = min(len(columns), len(cost))
    choices = [
        [*some, *rest]
        for some in itertools.combinations(columns, kept)
        for rest in itertools.combinations(others, len(cost) - kept)
    ]
    found = [(linear_sum_assignment(cost[:, choice]), choice) for choice in choices]
    (rows, at), choice = min(found, key=lambda each: cost[:, each[1]][each[0]].sum())
    return [(i, choice[j]) for i, j in zip(rows, at)]


def plain_loop(student, teacher, labels, student_head, teacher_head, stages, matching) -> dict[str, Tensor]:
    """Eq. 2-4, one layer, image and pair at a time."""
    matcher = HungarianMatcher(2.0, 5.0, 2.0, teacher_head)
    total = dict.fromkeys(("positive_class", "positive_box", "negative_box"), torch.zeros(()))
    for layer, stage in enumerate(stages):
        pairs = {"positive": [], "negative": []}
        for image, target in enumerate(labels):
            logits, boxes = student.logits[layer, image], student.boxes[layer, image]
            taught, places = teacher.logits[stage, image], teacher.boxes[stage, image]
            object_cost = matcher.class_costs(taught)[:, target["class_labels"]] * 2
            object_cost += 5 * torch.cdist(places, target["boxes"], p=1) - 2 * giou(places, target["boxes"])
            positive = sorted(linear_sum_assignment(object_cost.detach())[0])
            negative = [query for query in range(len(taught)) if query not in positive]
            box_cost = 5 * torch.cdist(boxes, places, p=1) - 2 * giou(boxes, places)
            class_cost = torch.stack(
                [torch.stack([class_loss(s, student_head, t, teacher_head) for t in taught]) for s in logits]
            )
            if matching == "joint" and len(boxes) >= len(taught):
                chosen = list(zip(*linear_sum_assignment((box_cost + class_cost).detach())))
            elif matching == "joint":
                chosen = cheapest_with_all(positive, (box_cost + class_cost).detach())
            else:
                first = linear_sum_assignment((box_cost + class_cost)[:, positive].detach())
                free = [query for query in range(len(boxes)) if query not in first[0]]
                then = linear_sum_assignment(box_cost[free][:, negative].detach())
                chosen = [(i, positive[j]) for i, j in zip(*first)] + [(free[i], negative[j]) for i, j in zip(*then)]
            assert len({i for i, _ in chosen}) == len({k for _, k in chosen}) == len(chosen) == min(len(boxes), len(taught))
            for i, k in chosen:
                box = 5 * (boxes[i] - places[k]).abs().sum() + 2 - 2 * giou(boxes, places)[i, k]
                pairs["positive" if k in positive else "negative"].append((class_cost[i, k], box))
        for kind, found in pairs.items():
            for part, index in (("class", 0), ("box", 1)):
                if found and f"{kind}_{part}" in total:
                    total[f"{kind}_{part}"] = total[f"{kind}_{part}"] + sum(pair[index] for pair in found) / len(found)
    return total


@pytest.mark.parametrize("matching", MATCHINGS)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize(
    ("depths", "queries", "counts"),
    [((3, 3), (8, 8), (3, 1)), ((3, 6), (6, 9), (2, 0)), ((4, 2), (9, 6), (0, 7)), ((2, 2), (3, 12), (5, 4))],
    ids=["alike", "deeper teacher with more queries", "shallower teacher with fewer", "more objects than student queries"],
)
def test_equals_a_plain_loop(output, labels, matching, heads, depths, queries, counts):
    student = output(layers=depths[0], queries=queries[0], head=heads[0])
    teacher = output(layers=depths[1], queries=queries[1], head=heads[1])
    objects = labels(*counts)
    found = term(*heads, matching=matching)(student, teacher, {"labels": objects})
    expected = plain_loop(student, teacher, objects, *heads, teaching_stages(*depths), matching)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("head", Head)
def test_a_student_equal_to_its_teacher_has_nothing_to_learn(output, labels, head):
    student = output(head=head, grad=True)
    teacher = replace(student, logits=student.logits.detach().clone(), boxes=student.boxes.detach().clone())
    found = term(head, head)(student, teacher, {"labels": labels(3, 2)})
    assert found["positive_box"] == found["negative_box"] == 0
    found["positive_class"].backward()
    torch.testing.assert_close(student.logits.grad, torch.zeros_like(student.logits), atol=1e-6, rtol=0)


@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_the_order_of_queries_does_not_matter(output, labels, whose):
    pair, batch = {"student": output(), "teacher": output(queries=10)}, {"labels": labels(2, 3)}
    before = term()(**pair, batch=batch)
    order = torch.randperm(pair[whose].logits.shape[2])
    pair[whose] = replace(pair[whose], logits=pair[whose].logits[:, :, order], boxes=pair[whose].boxes[:, :, order])
    torch.testing.assert_close(term()(**pair, batch=batch), before)


@pytest.mark.parametrize("counts", [(0, 0), (0, 2), (8, 8)], ids=["no objects", "one image without", "all queries positive"])
@pytest.mark.parametrize(("student_head", "teacher_head"), HEADS)
def test_every_batch_gives_finite_losses_and_gradients(output, labels, counts, student_head, teacher_head):
    student, teacher = output(head=student_head, grad=True), output(head=teacher_head)
    loss = sum(term(student_head, teacher_head)(student, teacher, {"labels": labels(*counts)}).values())
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.boxes.grad).all()
    assert student.boxes.grad.abs().sum() > 0
    assert torch.isfinite(student.logits.grad).all()


def test_negatives_teach_boxes_alone(output, labels):
    student, teacher = output(grad=True), output()
    term()(student, teacher, {"labels": labels(2, 2)})["negative_box"].backward()
    assert student.boxes.grad.abs().sum() > 0
    assert student.logits.grad is None


def test_switches_leave_the_other_parts_unchanged(output, labels):
    student, teacher, batch = output(), output(), {"labels": labels(2, 1)}
    whole = term()(student, teacher, batch)
    for part, value in whole.items():
        only = {name: name == part for name in whole}
        assert term(**only)(student, teacher, batch) == {part: value}


@pytest.mark.parametrize("stages", ["progressive", "last"])
def test_proposals_of_both_encoders_are_a_stage_before_the_others(output, labels, stages):
    """As a student and a teacher whose first layer's answers these are."""
    deep_student, deep_teacher, objects = output(layers=4), output(layers=5), labels(2, 1)
    student, teacher = (
        replace(each, logits=each.logits[1:], boxes=each.boxes[1:], proposals=Proposals(each.logits[0], each.boxes[0]))
        for each in (deep_student, deep_teacher)
    )
    taught_by = [0, *(1 + stage for stage in teaching_stages(3, 4))] if stages == "progressive" else [4] * 4
    found = term(stages=stages)(student, teacher, {"labels": objects})
    expected = plain_loop(deep_student, deep_teacher, objects, *HEADS[0], taught_by, "joint")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    without = term(stages=stages, proposals=False)(student, teacher, {"labels": objects})
    assert without == term(stages=stages)(student, replace(teacher, proposals=None), {"labels": objects}) != found


@pytest.mark.parametrize("name", ["rt_detr", "rt_detr_v2", "d_fine", "deimv2", "lw_detr", "rf_detr"])
def test_what_chooses_the_queries_is_taught(tiny_detector, labels, name):
    student, teacher = tiny_detector(name).train(), tiny_detector(name, decoder_layers=2)
    images, mask = torch.randn(2, 3, 128, 128), torch.ones(2, 128, 128, dtype=torch.int64)
    own, taught = student(images, mask, labels(2, 1)), teacher(images, mask)
    if teacher.family.content_from_memory:  # in the others learned offsets follow
        torch.testing.assert_close(taught.proposals.boxes, taught.queries.reference)
    for proposals in (True, False):
        term = HungarianLogits.build(student, teacher, proposals=proposals)
        assert ("proposals" in term.needs) == proposals
        loss = sum(term(own, taught, {"labels": labels(2, 1)}).values())
        proposed = own.proposals.logits, own.proposals.boxes
        gradients = torch.autograd.grad(loss, proposed, retain_graph=True, allow_unused=True)
        assert all((gradient is not None and gradient.abs().sum() > 0) == proposals for gradient in gradients)
        assert all(values.requires_grad for values in proposed)  # on to the encoder's own heads


def test_last_lets_the_last_stage_teach_every_stage(output, labels):
    student, teacher, batch = output(), output(layers=4), {"labels": labels(2, 1)}
    repeated = replace(teacher, logits=teacher.logits[[3, 3, 3]], boxes=teacher.boxes[[3, 3, 3]])
    found = term(stages="last")(student, teacher, batch)
    torch.testing.assert_close(found, term()(student, repeated, batch))
    assert found["negative_box"] != term()(student, teacher, batch)["negative_box"]


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [(6, 6, [0, 1, 2, 3, 4, 5]), (3, 6, [1, 3, 5]), (6, 3, [0, 0, 1, 1, 2, 2]), (4, 6, [1, 2, 4, 5]), (1, 6, [5])],
)
def test_stages_are_grouped_evenly_and_the_last_of_a_group_teaches(student, teacher, expected):
    assert teaching_stages(student, teacher) == expected


def test_all_matching_leaves_the_device_in_one_copy(output, labels, monkeypatch):
    copies, real = [], Tensor.cpu
    monkeypatch.setattr(Tensor, "cpu", lambda self: copies.append(self.shape) or real(self))
    term()(output(), output(), {"labels": labels(2, 1)})
    assert len(copies) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": "progresive"}, "did you mean 'progressive'"),
        ({"matching": "jiont"}, "did you mean 'joint'"),
        ({"positive_class": False, "positive_box": False, "negative_box": False}, "switch one on"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        term(**options)
