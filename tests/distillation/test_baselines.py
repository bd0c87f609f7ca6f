"""FGD, MGD, FGFI and FKD are what their papers' equations say, cell by cell, and leave padding and the teacher alone."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_convert, box_iou

from leandetr.distillation import Distiller, build_terms
from leandetr.distillation.fgd import FocalGlobal
from leandetr.distillation.fgfi import FineGrained
from leandetr.distillation.fkd import AttentionGuided
from leandetr.distillation.levels import Levels
from leandetr.distillation.mgd import MaskedGeneration

# student's and teacher's maps: two levels of another width
SHAPES = [(2, 6, 6, 5), (2, 6, 3, 3)], [(2, 8, 6, 5), (2, 8, 3, 3)]
SAME = [(2, 8, 6, 5), (2, 8, 3, 3)]


def build(name: str, widths: tuple[int, int] = (8, 8)):
    torch.manual_seed(1)
    term = {
        "fgd": lambda: FocalGlobal(Levels(*widths), widths[1]),
        "mgd": lambda: MaskedGeneration(Levels(*widths), widths[1]),
        "fgfi": lambda: FineGrained(Levels(*widths, kernel_size=3)),
        "fkd": lambda: AttentionGuided(Levels(*widths), widths[1]),
    }[name]()
    with torch.no_grad():  # blocks that start as the identity would hide what they do
        for parameter in term.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return term


def batch_of(labels: list, valid: tuple[int, int] = (48, 40)) -> dict:
    """Images of `valid` (height, width) in frames of 48 x 40 pixels: 8 a cell of the first level."""
    mask = torch.zeros(len(labels), 48, 40, dtype=torch.int64)
    mask[:, : valid[0], : valid[1]] = 1
    return {"labels": labels, "pixel_mask": mask}


def cells(box: Tensor, width: float, height: float) -> list[float]:
    return (box_convert(box[None], "cxcywh", "xyxy")[0] * torch.tensor([width, height, width, height])).tolist()


def fgd_attention(feature: Tensor) -> tuple[Tensor, Tensor]:
    channels, height, width = feature.shape
    spatial = height * width * F.softmax(feature.abs().mean(0).flatten() / 0.5, 0).view(height, width)
    return spatial, channels * F.softmax(feature.abs().mean((1, 2)) / 0.5, 0)


def fgd_masks(boxes: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    foreground = torch.zeros(height, width)
    for box in boxes:
        x0, y0, x1, y1 = cells(box, width, height)
        x0, y0, x1, y1 = math.floor(x0), math.floor(y0), math.ceil(x1), math.ceil(y1)
        for y in range(max(y0, 0), min(y1, height - 1) + 1):
            for x in range(max(x0, 0), min(x1, width - 1) + 1):
                foreground[y, x] = max(foreground[y, x].item(), 1 / ((x1 + 1 - x0) * (y1 + 1 - y0)))
    background = (foreground == 0).float()
    return foreground, background / max(background.sum().item(), 1)


def context(block, feature: Tensor) -> Tensor:
    weights = F.softmax(block.score(feature[None]).flatten(), 0)
    return feature + block.transform((feature.flatten(1) * weights).sum(1))[:, None, None]


@pytest.mark.parametrize("counts", [(3, 1), (0, 2), (0, 0)])
def test_fgd_equals_a_plain_loop(output, labels, counts):
    student, teacher, objects, term = output(shapes=SAME), output(shapes=SAME), labels(*counts), build("fgd")
    expected = dict.fromkeys(("foreground", "background", "attention", "relation"), torch.zeros(()))
    for s, t in zip(student.features, teacher.features):
        for image in range(2):
            (s_spatial, s_channel), (t_spatial, t_channel) = fgd_attention(s[image]), fgd_attention(t[image])
            weighted = (t[image] - s[image]) ** 2 * t_spatial * t_channel[:, None, None]
            foreground, background = fgd_masks(objects[image]["boxes"], *t.shape[-2:])
            attention = (s_spatial - t_spatial).abs().sum() + (s_channel - t_channel).abs().sum()
            relation = context(term.student_context, s[image]) - context(term.teacher_context, t[image])
            found = {
                "foreground": 1e-3 * (weighted * foreground).sum(),
                "background": 5e-4 * (weighted * background).sum(),
                "attention": 5e-4 * attention,
                "relation": 5e-6 * relation.square().sum(),
            }
            expected = {name: value + found[name] / 2 for name, value in expected.items()}
    torch.testing.assert_close(term(student, teacher, batch_of(objects)), expected)


def test_mgd_generates_the_teacher_from_the_cells_that_are_left(output, labels):
    student, teacher, term = output(shapes=SAME), output(shapes=SAME), build("mgd")
    torch.manual_seed(5)
    found = term(student, teacher, batch_of(labels(1, 1)))["generation"]
    torch.manual_seed(5)
    expected = torch.zeros(())
    for s, t in zip(student.features, teacher.features):
        seen = torch.where(torch.rand(2, 1, *t.shape[-2:]) < 0.65, 0.0, 1.0)
        expected += (t - term.generator(s * seen)).square().sum() / 2
    torch.testing.assert_close(found, expected)


def fgfi_mask(boxes: Tensor, height: int, width: int, sides: list[int]) -> Tensor:
    mask = torch.zeros(height, width)
    for box in boxes:
        box = torch.tensor([cells(box, width, height)])
        overlap = torch.zeros(height, width, 3 * len(sides))
        for y in range(height):
            for x in range(width):
                for a, (side, ratio) in enumerate((side, ratio) for side in sides for ratio in (0.5, 1, 2)):
                    h, w = side * ratio**0.5, side / ratio**0.5
                    anchor = torch.tensor([[x + 0.5 - w / 2, y + 0.5 - h / 2, x + 0.5 + w / 2, y + 0.5 + h / 2]])
                    overlap[y, x, a] = box_iou(box, anchor)
        mask[(overlap > 0.5 * overlap.max()).any(-1)] = 1
    return mask


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("counts", [(3, 1), (0, 2), (0, 0)])
def test_fgfi_equals_a_plain_loop(output, labels, counts, levels):
    student, teacher, objects = output(shapes=SHAPES[0][:levels]), output(shapes=SHAPES[1][:levels]), labels(*counts)
    term, expected = build("fgfi", (6, 8)), []
    for s, t in zip(student.features, teacher.features):
        squares, count = torch.zeros(()), 0
        adapted = F.conv2d(s, term.levels.adapter.weight, term.levels.adapter.bias, padding=1)
        for image in range(2):
            mask = fgfi_mask(objects[image]["boxes"], *t.shape[-2:], [2, 4, 8] if levels == 1 else [8])
            squares, count = squares + ((adapted - t)[image].square() * mask).sum(), count + mask.sum()
        expected.append(squares / (2 * count) if count else squares)
    torch.testing.assert_close(term(student, teacher, batch_of(objects))["imitation"], sum(expected) / levels)


def non_local(block, feature: Tensor) -> Tensor:
    query, key, value = (part(feature[None])[0].flatten(1) for part in (block.query, block.key, block.value))
    weights = F.softmax(query.T @ key / len(query) ** 0.5, dim=1)
    return feature + block.out((value @ weights.T).view(1, -1, *feature.shape[1:]))[0]


def test_fkd_equals_a_plain_loop(output, labels):
    student, teacher, term = output(shapes=SAME), output(shapes=SAME), build("fkd")
    expected = dict.fromkeys(("attention", "imitation", "relation"), torch.zeros(()))
    for student_map, teacher_map in zip(student.features, teacher.features):
        for s, t in zip(student_map, teacher_map):
            channels, height, width = t.shape
            by_cell, by_channel = ([x.abs().mean(dims) for x in (s, t)] for dims in ((0,), (1, 2)))
            mask = height * width * F.softmax(sum(by_cell).flatten() / 0.5, 0).view(1, height, width)
            mask = mask * channels * F.softmax(sum(by_channel) / 0.5, 0)[:, None, None]
            relation = term.relation_adapter(non_local(term.student_relations, s)) - non_local(term.teacher_relations, t)
            found = {
                "attention": 4e-3 * ((by_cell[0] - by_cell[1]).norm() + (by_channel[0] - by_channel[1]).norm()),
                "imitation": 7e-5 * ((t - s).square() * mask).sum().sqrt(),
                "relation": 7e-5 * relation.norm(),
            }
            expected = {name: value + found[name] / 2 for name, value in expected.items()}
    torch.testing.assert_close(term(student, teacher, batch_of(labels(1, 1))), expected)


@pytest.mark.parametrize(("name", "width"), [("fgd", 8), ("fkd", 8)])
def test_equal_features_cost_nothing_while_the_blocks_are_untrained(output, labels, name, width):
    same = output(shapes=SAME)
    term = FocalGlobal(Levels(width, width), width) if name == "fgd" else AttentionGuided(Levels(width, width), width)
    parts = term(same, same, batch_of(labels(2, 0)))
    torch.testing.assert_close(sum(parts.values()), torch.zeros(()), atol=1e-7, rtol=0)


@pytest.mark.parametrize("name", ["fgd", "mgd", "fgfi", "fkd"])
def test_gradients_reach_the_student_and_the_term_and_never_the_teacher(output, labels, name):
    student, teacher = output(shapes=SHAPES[0], grad=True), output(shapes=SHAPES[1])
    term = build(name, (6, 8))
    sum(term(student, teacher, batch_of(labels(2, 1))).values()).backward()
    for level in student.features:
        assert torch.isfinite(level.grad).all()
        assert level.grad.abs().sum() > 0
    assert all(torch.isfinite(parameter.grad).all() for parameter in term.parameters())
    assert all(level.grad is None for level in teacher.features)


@pytest.mark.parametrize("name", ["fgd", "mgd", "fgfi", "fkd"])
def test_what_is_in_the_padding_does_not_count(output, labels, name):
    student, teacher = output(shapes=SHAPES[0][:1]), output(shapes=SHAPES[1][:1])
    batch, term = batch_of(labels(2, 1), valid=(32, 24)), build(name, (6, 8))  # 4 x 3 of 6 x 5 cells hold image
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        found.append(sum(term(student, teacher, batch).values()))
        for features, side in ((student.features[0], name != "fgfi"), (teacher.features[0], True)):
            features[..., 4 + (not side) :, :] += 7  # FGFI's 3x3 adapter reads one cell beyond the image's edge
            features[..., 3 + (not side) :] -= 5
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("name", ["fgd", "fgfi"])
def test_objects_lie_in_the_image_and_not_in_its_frame(output, labels, name):
    """An image that fills part of its frame costs what it costs alone."""
    small = [(2, 8, 4, 3)]
    student, teacher = output(shapes=small), output(shapes=small)
    objects, term = labels(2, 1), build(name)
    alone = batch_of(objects)["pixel_mask"][:, :32, :24]
    before = term(student, teacher, {"labels": objects, "pixel_mask": alone})
    for answer in (student, teacher):
        answer.features[0] = F.pad(answer.features[0], (0, 2, 0, 2))
    torch.testing.assert_close(term(student, teacher, batch_of(objects, valid=(32, 24))), before)


@pytest.mark.parametrize("family", ["detr", "rt_detr_v2"])
def test_they_train_together_by_name(tiny_detector, labels, family):
    student, teacher = tiny_detector(family).train(), tiny_detector("deformable_detr", d_model=32)
    terms = build_terms("fgd,mgd,fgfi,fkd", student, teacher)
    assert {term.name: weight for term, weight in terms} == {"fgd": 1, "mgd": 2e-5, "fgfi": 0.01, "fkd": 1}
    batch = {"pixel_values": torch.randn(2, 3, 128, 128), "pixel_mask": torch.ones(2, 128, 128, dtype=torch.int64)}
    result = Distiller(student, teacher, terms).train()(**batch, labels=labels(0, 2))
    result.loss.backward()
    assert torch.isfinite(result.loss)
    assert all(result.logs[f"gradient/{term.name}"] > 0 for term, _ in terms)
