"""Query-prior assignment distillation trains a student's decoder on the teacher's queries, by the teacher's assignment."""

from dataclasses import replace

import pytest
import torch

from leandetr.distillation.assignment import QueryPriorAssignment
from leandetr.distillation.query_map import levels_of, queries_at, sample
from leandetr.errors import UserError
from leandetr.heads import ClassLoss
from leandetr.losses import Assignment, HungarianMatcher, SetCriterion, at_every_layer, pad_targets

FAMILIES = ["detr", "conditional_detr", "deformable_detr", "rt_detr_v2"]


@pytest.fixture
def batch(labels):
    torch.manual_seed(0)
    return {
        "pixel_values": torch.randn(2, 3, 128, 128),
        "pixel_mask": torch.ones(2, 128, 128, dtype=torch.int64),
        "labels": labels(3, 1),
    }


def images(batch):
    return batch["pixel_values"], batch["pixel_mask"]


@pytest.fixture
def answers(tiny_detector, batch):
    """answers(family): a student, a wider teacher with more queries and fewer stages, and their outputs."""

    def build(name: str):
        student, teacher = tiny_detector(name), tiny_detector(name, d_model=128, num_queries=15, decoder_layers=2)
        with torch.no_grad():
            taught = teacher(*images(batch))
        return student, teacher, student(*images(batch)), taught

    return build


@pytest.mark.parametrize("family", FAMILIES)
def test_the_group_is_judged_by_the_teachers_assignment_at_every_stage(answers, batch, family):
    student, teacher, own, taught = answers(family)
    term = QueryPriorAssignment.build(student, teacher)
    group = student.decode(term.queries(taught.queries, own), own.memory)
    assert group.logits.shape[:3] == (3, 2, 15)
    matcher = HungarianMatcher.from_config(teacher.config, teacher.head)
    last = matcher(taught.logits[-1:], taught.boxes[-1:], pad_targets(batch["labels"]))
    criterion = SetCriterion.from_config(student.config, student.family.class_loss)
    expected = [criterion(group.logits[i : i + 1], group.boxes[i : i + 1], batch["labels"], last) for i in range(3)]
    expected = {part: sum(stage[part] for stage in expected) for part in ("class", "bbox", "giou")}
    torch.testing.assert_close(term(own, taught, batch), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_the_student_through_decoder_and_memory_and_never_the_teacher(answers, batch, family):
    student, teacher, own, taught = answers(family)
    own.memory.tokens.retain_grad()
    term = QueryPriorAssignment.build(student, teacher)
    sum(term(own, taught, batch).values()).backward()
    assert own.memory.tokens.grad.abs().sum() > 0
    assert all(p.grad is not None for p in term.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.model.model.decoder.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    assert not any(name.startswith("_student") for name in term.state_dict())


def test_the_students_own_answer_does_not_change(answers, batch):
    student, teacher, own, taught = answers("deformable_detr")
    QueryPriorAssignment.build(student, teacher)(own, taught, batch)
    again = student(*images(batch))
    torch.testing.assert_close((again.logits, again.boxes), (own.logits, own.boxes), atol=1e-6, rtol=0)


def test_rematching_lets_every_stage_choose_the_cheapest_pairs(answers, batch):
    student, teacher, own, taught = answers("detr")
    taught = replace(taught, logits=taught.logits.flip(2), boxes=taught.boxes.flip(2))  # an assignment that fits nobody
    rematched = QueryPriorAssignment.build(student, teacher, rematch=True)
    given = QueryPriorAssignment.build(student, teacher)
    given.queries = rematched.queries
    group = student.decode(rematched.queries(taught.queries, own), own.memory)
    own_choice = SetCriterion.from_config(student.config, ClassLoss.CROSS_ENTROPY)(group.logits, group.boxes, batch["labels"])
    found = rematched(own, taught, batch)
    torch.testing.assert_close(found, own_choice)
    assert found["bbox"] + found["giou"] < sum(given(own, taught, batch)[part] for part in ("bbox", "giou"))


def test_a_batch_without_objects_gives_a_finite_loss(answers, batch, labels):
    student, teacher, own, taught = answers("deformable_detr")
    parts = QueryPriorAssignment.build(student, teacher)(own, taught, batch | {"labels": labels(0, 0)})
    assert parts["bbox"] == parts["giou"] == 0
    assert torch.isfinite(parts["class"])


def test_equal_detectors_answer_equally(tiny_detector, batch):
    student = tiny_detector("detr")
    own = student(*images(batch))
    term = QueryPriorAssignment.build(student, student)
    group = student.decode(term.queries(own.queries, own), own.memory)
    torch.testing.assert_close(group.boxes, own.boxes)


@pytest.mark.parametrize(
    ("student", "teacher", "overrides"),
    [
        ("detr", "conditional_detr", {}),
        ("rt_detr_v2", "detr", {}),
        ("deformable_detr", "deformable_detr", {"two_stage": True, "with_box_refine": True, "two_stage_num_proposals": 12}),
    ],
)
def test_queries_that_mean_something_else_are_refused(tiny_detector, student, teacher, overrides):
    with pytest.raises(UserError, match="whose queries mean something else"):
        QueryPriorAssignment.build(tiny_detector(student), tiny_detector(teacher, **overrides))


@pytest.mark.parametrize(("boxes", "message"), [("studnet", "did you mean 'student'"), ("student", "proposes none")])
def test_boxes_that_cannot_be_had_are_refused(tiny_detector, boxes, message):
    with pytest.raises(UserError, match=message):
        QueryPriorAssignment.build(tiny_detector("detr"), tiny_detector("detr"), boxes=boxes)


def test_assignment_is_repeated_for_every_stage():
    single = Assignment(torch.tensor([0, 0]), torch.tensor([0, 1]), torch.tensor([7, 8]), torch.tensor([2, 0]))
    repeated = at_every_layer(single, 2)
    assert [index.tolist() for index in repeated] == [[0, 0, 1, 1], [0, 1, 0, 1], [7, 8, 7, 8], [2, 0, 2, 0]]


@pytest.mark.parametrize("family", ["rt_detr", "d_fine"])
def test_own_boxes_are_what_the_students_encoder_proposes_there(tiny_detector, batch, family):
    """Asked at every cell of the memory, the queries that its own encoder has chosen are found again, content and box."""
    student = tiny_detector(family)
    with torch.no_grad():
        own = student(*images(batch))
        cells = []
        for level, (height, width) in enumerate(own.memory.shapes):
            y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
            side = torch.full_like(x, 0.05 * 2**level)
            cells.append(torch.stack([x, y, side, side], -1).flatten(0, 1))
        every = queries_at(torch.cat(cells).expand(2, -1, -1), student, own, own_boxes=True)
    for field in ("reference", "content"):
        chosen, proposed = getattr(own.queries, field), getattr(every, field)
        assert torch.cdist(chosen, proposed).amin(-1).max() < 1e-3
    term = QueryPriorAssignment.build(student, tiny_detector(family), boxes="student")
    assert sum(term(own, own, batch).values()) > 0


def test_content_is_read_at_the_centre_on_the_level_of_the_boxs_size():
    fine, coarse = torch.arange(16.0).view(1, 1, 4, 4), 100 + torch.arange(4.0).view(1, 1, 2, 2)
    small, large = [0.375, 0.625, 0.04, 0.05], [0.75, 0.25, 0.6, 0.1]
    boxes = torch.tensor([[small, large]])
    found = sample([fine, coarse], boxes, levels_of(boxes, 2))
    assert found.flatten().tolist() == [9.0, 101.0]
