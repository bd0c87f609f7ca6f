"""CLoCKDistill's two terms as plain loops: the memory object by object, and answers to queries made of the annotated boxes."""

import math

import pytest
import torch
from torchvision.ops import box_convert, generalized_box_iou

from leandetr.distillation.levels import Levels
from leandetr.distillation.located_memory import LocatedMemory
from leandetr.distillation.target_queries import TargetQueries, queries_for
from leandetr.errors import UserError

FAMILIES = ["detr", "conditional_detr", "deformable_detr", "rt_detr_v2", "d_fine", "dab_detr", "lw_detr", "adamixer"]


@pytest.fixture
def batch(labels):
    torch.manual_seed(0)
    mask = torch.ones(2, 128, 128, dtype=torch.int64)
    return {"pixel_values": torch.randn(2, 3, 128, 128), "pixel_mask": mask, "labels": labels(3, 1)}


def test_memory_equals_a_loop_over_cells_and_boxes(output, labels):
    shapes = [(3, 8, 6, 8), (3, 8, 3, 4)]
    student, teacher = output(shapes=shapes), output(shapes=shapes)
    objects = labels(2, 1, 0)
    outer, inner = torch.tensor([0.5, 0.5, 0.6, 0.6]), torch.tensor([0.5, 0.5, 0.2, 0.2])
    objects[0]["boxes"] = torch.stack([outer, inner])  # inside the smaller one its own size counts
    mask = torch.ones(3, 96, 128, dtype=torch.int64)
    expected = {"foreground": 0.0, "background": 0.0}
    for taught, mine in zip(teacher.features, student.features):
        (height, width), unit = taught.shape[-2:], taught.square().mean()
        for b in range(3):
            weights = torch.zeros(height, width)
            for box in objects[b]["boxes"]:
                x0, y0, x1, y1 = box_convert(box[None], "cxcywh", "xyxy")[0].tolist()
                x0, y0, x1, y1 = math.floor(x0 * width), math.floor(y0 * height), math.ceil(x1 * width), math.ceil(y1 * height)
                for y in range(y0, y1 + 1):
                    for x in range(x0, x1 + 1):
                        if y < height and x < width:
                            share = 1 / (x1 - x0 + 1) / (y1 - y0 + 1)
                            weights[y, x] = max(weights[y, x], share)
            nowhere = (weights == 0).sum()
            for y in range(height):
                for x in range(width):
                    square = (taught[b, :, y, x] - mine[b, :, y, x]).square().mean() / unit / 3
                    if weights[y, x]:
                        expected["foreground"] += weights[y, x] * square
                    else:
                        expected["background"] += square / nowhere / 500
    found = LocatedMemory(Levels(8, 8))(student, teacher, {"labels": objects, "pixel_mask": mask})
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_about_the_objects_equal_a_plain_loop(tiny_detector, batch, family):
    student, teacher = tiny_detector(family), tiny_detector(family, decoder_layers=2)
    own = student(batch["pixel_values"], batch["pixel_mask"])
    with torch.no_grad():
        taught = teacher(batch["pixel_values"], batch["pixel_mask"])
    term = TargetQueries.build(student, teacher)
    asked = []
    for detector in (teacher, student):
        decode = detector.decode
        detector.decode = lambda q, m, *maps, decode=decode: asked.append(decode(q, m)) or asked[-1]
    found = term(own, taught, batch)
    theirs, mine = asked
    sums, total = [torch.zeros(()), torch.zeros(())], 0.0
    for b, count in ((0, 3), (1, 1)):
        for i in range(count):
            z, box = theirs.logits[-1, b, i], theirs.boxes[-1, b, i]
            w = z.softmax(-1)[:-1].max() if family == "detr" else z.sigmoid().max()
            total += w
            for layer in range(len(mine.logits)):
                p, q = (z / 10).softmax(-1), (mine.logits[layer, b, i] / 10).softmax(-1)
                place = mine.boxes[layer, b, i]
                giou = generalized_box_iou(*(box_convert(x[None], "cxcywh", "xyxy") for x in (place, box)))[0, 0]
                sums[0] = sums[0] + w * 100 * (p * (p / q).log()).mean()
                sums[1] = sums[1] + w * (5 * (place - box).abs().mean() + 2 * (1 - giou))
    torch.testing.assert_close((found["class"], found["box"]), (sums[0] / total, sums[1] / total), rtol=1e-3, atol=1e-4)
    sum(found.values()).backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.model.model.decoder.parameters())
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("family", ["rt_detr_v2", "dab_detr", "lw_detr", "adamixer", "two-stage"])
def test_a_query_is_the_box_that_it_asks_for(tiny_detector, batch, family):
    two_stage = {"two_stage": True, "with_box_refine": True, "two_stage_num_proposals": 12}
    detector = tiny_detector("deformable_detr", **two_stage) if family == "two-stage" else tiny_detector(family)
    output = detector(batch["pixel_values"], batch["pixel_mask"])
    if family == "two-stage":  # its own proposals become its own queries
        made = queries_for(output.queries.reference, detector, output)
        torch.testing.assert_close((made.content, made.position), (output.queries.content, output.queries.position))
    boxes = torch.rand(2, 4, 4) * 0.3 + 0.3
    answer = detector.decode(queries_for(boxes, detector, output), output.memory)
    with torch.no_grad():  # boxes of a new detector stay where they begin
        torch.testing.assert_close(answer.boxes[0], boxes, atol=0.1, rtol=0)


def test_the_order_of_objects_does_not_matter_and_none_is_nothing(tiny_detector, batch, labels):
    student, teacher = tiny_detector("conditional_detr"), tiny_detector("conditional_detr", decoder_layers=2)
    term = TargetQueries.build(student, teacher)
    with torch.no_grad():
        own, taught = (d(batch["pixel_values"], batch["pixel_mask"]) for d in (student, teacher))
        before = term(own, taught, batch)
        first = batch["labels"][0]
        first["boxes"], first["class_labels"] = first["boxes"].flip(0), first["class_labels"].flip(0)
        torch.testing.assert_close(term(own, taught, batch), before, rtol=1e-4, atol=1e-5)
        assert sum(term(own, taught, batch | {"labels": labels(0, 0)}).values()) == 0


def test_what_cannot_be_asked_alike_is_refused(tiny_detector):
    with pytest.raises(UserError, match="class distributions of one kind"):
        TargetQueries.build(tiny_detector("conditional_detr"), tiny_detector("detr"))
    with pytest.raises(UserError, match="queries mean something else"):
        TargetQueries.build(tiny_detector("conditional_detr"), tiny_detector("rt_detr_v2"))
