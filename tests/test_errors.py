"""What is said of a name that is not known."""

import pytest

from leandetr.errors import unknown

MANY = [f"resnet{number}" for number in range(100, 200)]


@pytest.mark.parametrize(
    ("name", "known", "sentence"),
    [
        ("statik", ["static", "dynamic"], "unknown thing 'statik': did you mean 'static'? (known: dynamic, static)"),
        ("tensorrt", ["pytorch"], "unknown thing 'tensorrt' (known: pytorch)"),
        ("resnet18", ["swin_detr", "detr"], "unknown thing 'resnet18' (known: detr, swin_detr)"),
        (8, [4, "all"], "unknown thing 8 (known: 4, all)"),
        ("yolo", MANY, "unknown thing 'yolo' (none of 100 is like it)"),
    ],
)
def test_the_nearest_is_named_where_there_is_one(name, known, sentence):
    assert str(unknown("thing", name, known)) == sentence


def test_of_many_names_the_nearest_alone_are_listed():
    said = str(unknown("thing", "resnet1999", MANY))
    assert said.startswith("unknown thing 'resnet1999': did you mean 'resnet199'? (the nearest of 100: resnet199, ")
    assert said.count("resnet") == 7
