"""A teacher sees the student's images as it would have preprocessed them itself, and answers in the student's classes."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from leandetr.distillation.teacher import DetectorTeacher, View, class_columns
from leandetr.errors import UserError
from leandetr.heads import Head
from leandetr.structures import ClassMap, Preprocessing

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
PLAIN = Preprocessing(size=(32, 32))
NORMALISED = Preprocessing(size=(32, 32), **IMAGENET)
LARGER = Preprocessing(size=(48, 64))
ANY_SIZE = Preprocessing(size=None, shortest_edge=32, longest_edge=64, **IMAGENET)


def normalise(image, preprocessing):
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    return (image - mean) / std


@pytest.mark.parametrize(
    ("student", "teacher"),
    [(PLAIN, PLAIN), (NORMALISED, PLAIN), (PLAIN, NORMALISED), (PLAIN, LARGER), (NORMALISED, LARGER), (PLAIN, ANY_SIZE)],
)
def test_pixels_are_those_of_the_teachers_own_preprocessing(student, teacher):
    torch.manual_seed(0)
    image = torch.rand(2, 3, 32, 32)
    mask = torch.ones(2, 32, 32, dtype=torch.int64)
    values, seen = View(student, teacher)(normalise(image, student), mask)
    size = teacher.size or (32, 32)
    resized = F.interpolate(image, size, mode="bilinear", antialias=True) if size != (32, 32) else image
    torch.testing.assert_close(values, normalise(resized, teacher), atol=1e-5, rtol=1e-5)
    assert seen.shape == (2, *size)
    assert seen.all()


def test_padding_stays_padding_where_the_size_is_free():
    mask = torch.ones(1, 32, 48, dtype=torch.int64)
    mask[:, :, 40:] = 0
    values, seen = View(replace(ANY_SIZE, mean=(0.0, 0.0, 0.0)), ANY_SIZE)(torch.rand(1, 3, 32, 48) * mask[:, None], mask)
    assert torch.equal(seen, mask)
    assert (values[..., 40:] == 0).all()
    assert (values[..., :40] != 0).any()


def test_padding_is_cut_off_where_the_teachers_size_is_fixed():
    ramp = torch.linspace(0, 1, 20)[None, None, None, :].expand(1, 3, 16, 20)  # brightness runs from 0 to 1 across the image
    padded, mask = F.pad(ramp, (0, 12, 0, 16)), F.pad(torch.ones(1, 16, 20, dtype=torch.int64), (0, 12, 0, 16))
    student = Preprocessing(size=None, shortest_edge=16, longest_edge=32)
    values, seen = View(student, Preprocessing(size=(16, 20)))(padded, mask)
    torch.testing.assert_close(values, ramp, atol=1e-5, rtol=0)
    assert seen.shape == (1, 16, 20)
    assert seen.all()


def test_columns_follow_the_students_names():
    student, teacher = ClassMap(("cat", "dog"), (1, 2)), ClassMap(("dog", "bird", "cat"), (5, 6, 7))
    assert class_columns(student, teacher, Head.SIGMOID) == [2, 0]
    assert class_columns(student, teacher, Head.SOFTMAX) == [2, 0, 3]
    assert class_columns(student, ClassMap(("cat", "dog"), (8, 9)), Head.SOFTMAX) is None


def test_a_class_the_teacher_lacks_is_refused_with_both_lists():
    with pytest.raises(UserError, match="does not know fox: it has the classes cat, dog, and the student has fox, cat"):
        class_columns(ClassMap(("fox", "cat"), (1, 2)), ClassMap(("cat", "dog"), (1, 2)), Head.SIGMOID)


@pytest.mark.parametrize("family", ["detr", "deformable_detr"])
def test_answer_is_the_detectors_own_with_permuted_classes(tiny_detector, classes, family):
    detector, student = tiny_detector(family).train(), tiny_detector("detr")
    order = [3, 0, 1, 4, 2]
    student.class_map = ClassMap(tuple(classes.names[i] for i in order), tuple(range(5)))
    student.preprocessing = detector.preprocessing
    images, mask = torch.randn(1, 3, 128, 128), torch.ones(1, 128, 128, dtype=torch.int64)
    answer = DetectorTeacher(detector, student).answer(images, mask)
    assert not detector.training
    own = detector(images, mask)
    torch.testing.assert_close(answer.logits[..., :5], own.logits[..., order])
    torch.testing.assert_close(answer.logits[..., 5:], own.logits[..., 5:])
    torch.testing.assert_close(answer.boxes, own.boxes)
    assert not answer.logits.requires_grad
