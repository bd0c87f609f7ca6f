"""What the synthetic set promises: equal files for equal seeds, boxes that fit, objects of all sizes, nothing foreign lost."""

import json

import numpy as np
import pytest

from leandetr.data.check import check
from leandetr.data.coco import find_split
from leandetr.data.shapes import CLASSES, _bounds, draw_scene, write_shapes
from leandetr.errors import UserError


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_same_seed_writes_the_same_files_and_another_one_does_not(tmp_path):
    first, again, other = (
        contents(write_shapes(tmp_path / name, train=3, val=2, seed=seed)) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == again
    assert len(first) == 3 + 2 + 2
    assert first["train/000001.jpg"] != other["train/000001.jpg"] != first["val/000001.jpg"]


def test_an_image_does_not_depend_on_how_many_there_are(tmp_path):
    few, many = (contents(write_shapes(tmp_path / str(n), train=n, val=1, size=(64, 96))) for n in (1, 3))
    assert few["train/000001.jpg"] == many["train/000001.jpg"]


def test_the_set_passes_its_own_check(tmp_path):
    folder = write_shapes(tmp_path / "shapes", train=20, val=5, size=(96, 128))
    assert [check(find_split(folder, split)) for split in ("train", "val")] == [[], []]


def test_every_class_and_every_size_occurs_and_some_images_are_empty():
    scenes = [draw_scene(np.random.default_rng(seed), (160, 160))[1] for seed in range(80)]
    areas = np.array([box[2] * box[3] for objects in scenes for _, box in objects])
    assert {kind for objects in scenes for kind, _ in objects} == set(range(len(CLASSES)))
    assert min((areas < 32**2).mean(), (areas >= 96**2).mean()) > 0.05
    assert [] in scenes


def test_a_box_is_the_exact_bounds_of_a_shape():
    mask = np.zeros((8, 9), dtype=bool)
    mask[2:5, 3] = mask[4, 3:8] = True
    assert _bounds(mask) == [3, 2, 5, 3]


def test_the_set_is_written_anew_but_nothing_else_is_replaced(tmp_path):
    folder = write_shapes(tmp_path / "shapes", train=1, val=1, size=(64, 64))
    write_shapes(folder, train=2, val=1, size=(64, 64))
    assert len(json.loads((folder / "annotations/instances_train.json").read_text())["images"]) == 2
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not a set of shapes"):
        write_shapes(folder, train=1, val=1)
    assert (folder / "notes.txt").read_text() == "mine"
    with pytest.raises(UserError, match=r"notes\.txt exists"):
        write_shapes(folder / "notes.txt", train=1, val=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"val": 0}, "at least one image"), ({"size": (32, 160)}, "at least 64 x 64")],
    ids=["no images", "tiny"],
)
def test_what_cannot_be_drawn_is_refused(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        write_shapes(tmp_path / "shapes", **options)
    assert not list(tmp_path.iterdir())
