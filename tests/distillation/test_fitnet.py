"""What FitNet promises: zero for equal features, the plain mean of squares otherwise, gradients to the student alone."""

import pytest
import torch

from leandetr.distillation.fitnet import FitNet
from leandetr.distillation.levels import Levels, pair_levels


def everywhere(images: int = 2):
    return {"pixel_mask": torch.ones(images, 32, 32, dtype=torch.int64)}


def test_equal_features_cost_nothing(output):
    same = output(widths=[8, 8])
    assert FitNet(Levels(8, 8))(same, same, everywhere())["imitation"] == 0


@pytest.mark.parametrize(
    ("student_shape", "teacher_shape"),
    [((2, 8, 4, 4), (2, 8, 4, 4)), ((2, 8, 4, 4), (2, 16, 4, 4)), ((2, 8, 2, 3), (2, 16, 4, 6)), ((1, 8, 1, 1), (1, 8, 1, 1))],
    ids=["same", "wider teacher", "finer teacher", "one cell"],
)
def test_gradient_reaches_the_student_and_its_adapter(output, student_shape, teacher_shape):
    student, teacher = output(shapes=[student_shape], grad=True), output(shapes=[teacher_shape])
    term = FitNet(Levels(student_shape[1], teacher_shape[1]))
    term(student, teacher, everywhere(student_shape[0]))["imitation"].backward()
    assert student.features[0].grad.abs().sum() > 0
    assert all(parameter.grad.abs().sum() > 0 for parameter in term.parameters())


def test_equals_the_definition(output):
    student, teacher = output(widths=[8, 8]), output(widths=[8, 8])
    plain = sum(((t - s) ** 2).sum() / s.numel() for s, t in zip(student.features, teacher.features)) / 2
    torch.testing.assert_close(FitNet(Levels(8, 8))(student, teacher, everywhere())["imitation"], plain)


def test_the_scale_of_the_features_does_not_count(output):
    student, teacher = output(), output()
    before = FitNet(Levels(8, 8))(student, teacher, everywhere())["imitation"]
    for features in (student.features[0], teacher.features[0]):
        features *= 0.02
    torch.testing.assert_close(FitNet(Levels(8, 8))(student, teacher, everywhere())["imitation"], before)


def test_padding_does_not_count(output):
    student, teacher = output(), output()
    batch = everywhere()
    batch["pixel_mask"][:, :, 16:] = 0  # the right half
    before = FitNet(Levels(8, 8))(student, teacher, batch)["imitation"]
    image = teacher.features[0][..., :2]
    plain = (student.features[0][..., :2] - image).square().mean() / image.square().mean()
    student.features[0][..., 2:] += 5
    torch.testing.assert_close(before, plain)
    assert FitNet(Levels(8, 8))(student, teacher, batch)["imitation"] == before


def test_a_teacher_without_padding_is_compared_with_the_image_alone(output):
    teacher = output(shapes=[(1, 8, 4, 4)])
    student = output(shapes=[(1, 8, 8, 6)])
    student.features[0][..., :4, :4] = teacher.features[0]  # the image fills the top left part of the student's padded frame
    batch = {"pixel_mask": torch.zeros(1, 64, 48, dtype=torch.int64)}
    batch["pixel_mask"][:, :32, :32] = 1
    found = FitNet(Levels(8, 8, cut_padding=True))(student, teacher, batch)["imitation"]
    torch.testing.assert_close(found, torch.zeros(()), atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        ([8, 4, 2], [16, 8, 4], [(8, 16), (4, 8), (2, 4)]),
        ([8], [32, 16, 8, 4], [(8, 8)]),
        ([32, 16, 8, 4], [7], [(8, 7)]),
    ],
    ids=["in order", "the teacher's nearest", "the student's nearest"],
)
def test_levels_are_paired_by_resolution_where_their_numbers_differ(student, teacher, expected):
    maps = [[torch.zeros(1, 1, side, side) for side in sides] for sides in (student, teacher)]
    assert [(s.shape[-1], t.shape[-1]) for s, t in pair_levels(*maps)] == expected
