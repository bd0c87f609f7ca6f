"""What the check promises: every fault is found, counted and named, whatever else is wrong."""

import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from leandetr.data.check import check, faults_table, summarise
from leandetr.data.coco import Split, find_split
from leandetr.errors import UserError


@pytest.fixture
def faulty(tmp_path):
    """faulty(coco) -> Split, with a.jpg, b.jpg (64 x 48), cut.jpg (truncated), text.jpg (no image), dark.png (12 bits)."""
    for name in ("a.jpg", "b.jpg", "cut.jpg"):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(tmp_path / name)
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:900])
    Image.fromarray(np.full((48, 64), 4095, dtype=np.uint16)).save(tmp_path / "dark.png")
    (tmp_path / "text.jpg").write_text("no image")

    def write(coco):
        (tmp_path / "coco.json").write_text(json.dumps(coco))
        return Split(tmp_path / "coco.json", tmp_path)

    return write


def image(number, name, width=64, height=48):
    return {"id": number, "file_name": name, "width": width, "height": height}


def box(number, bbox, image_id=1, category_id=1):
    return {"id": number, "image_id": image_id, "category_id": category_id, "bbox": bbox}


CATEGORIES = [{"id": 1, "name": "cell"}]


def test_a_summary_counts_what_is_sound(faulty):
    boxes = [
        box(1, [0, 0, 4, 9]),
        box(2, [0, 0, 8, 3]),
        box(3, [0, 0, 6, 5], category_id=2),
        box(4, [1]),
        box(5, [0] * 4, 7),
        {},
    ]
    classes = [*CATEGORIES, {"id": 2, "name": "platelet"}, {"id": 3, "name": "none"}]
    coco = {"images": [image(1, "a.jpg"), image(2, "b.jpg"), {}], "annotations": boxes, "categories": classes}
    found = summarise(faulty(coco))
    assert (found.images, found.empty, found.boxes) == (2, 1, {"cell": 2, "platelet": 1, "none": 0})
    assert found.median_box == (6, 5)
    assert str(found) == "2 images, 1 without boxes; 3 boxes, median 6 x 5 pixels\n  cell 2, platelet 1, none 0"
    assert str(summarise(faulty({"images": [image(1, "a.jpg")]}))) == "1 images, 1 without boxes; 0 boxes"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {}),
        ({"images": [image(1, "a.jpg"), image(2, "gone.jpg")]}, {"missing image": 1}),
        ({"images": [image(1, "a.jpg"), image(2, "cut.jpg"), image(3, "text.jpg")]}, {"unreadable image": 2}),
        ({"images": [image(1, "a.jpg", 48, 64)], "annotations": []}, {"proportions differ from the file": 1}),
        ({"images": [image(1, "a.jpg"), image(1, "b.jpg")]}, {"duplicate image id": 1}),
        ({"images": [image(1, "a.jpg"), image(2, "a.jpg")]}, {"duplicate file name": 1}),
        ({"images": []}, {"empty list": 1, "unknown image": 1}),
        ({"images": [image(1, "a.jpg"), {"id": 2}, 7]}, {"malformed entry": 2}),
        ({"annotations": [box(1, [0, 0, 9, 9]), box(1, [0, 0, 8, 8])]}, {"duplicate annotation id": 1}),
        ({"annotations": [box(1, [70, 0, 9, 9])]}, {"box outside of its image": 1}),
        ({"annotations": [box(1, [60, 0, 9, 9]), box(2, [55.5, 0, 9, 9])]}, {"box reaching out of its image": 1}),
        ({"annotations": [box(1, [5, 5, 0, 9]), box(2, [5, 5, 9, -1])]}, {"empty box": 2}),
        (
            {"annotations": [box(1, [float("nan"), 5, 9, 9]), box(2, [5, 5, 9]), {"id": 3, "image_id": 1, "category_id": 1}]},
            {"box is not four finite numbers": 3},
        ),
        ({"annotations": [box(1, [0, 0, 9, 9]), box(2, [0, 0, 9, 9]), box(3, [1, 0, 9, 9])]}, {"repeated annotation": 1}),
        ({"annotations": [box(1, [0.1, 0.2, 0.5, 0.5]), box(2, [0, 0, 9, 9])]}, {"box in parts of the image, not pixels": 1}),
        ({"categories": [{"id": 1, "name": 7}]}, {}),
        ({"images": [{"id": 1, "file_name": "a.jpg"}]}, {}),
        ({"images": [image(1, "a.jpg", "64", "48")]}, {}),
        ({"images": [image(1, "a.jpg", "wide", 48)], "annotations": []}, {"malformed entry": 1}),
        ({"images": [image(1, "dark.png")], "annotations": []}, {"nearly black image": 1}),
        ({"annotations": [box(1, [0, 0, 9, 9], image_id=5)]}, {"unknown image": 1}),
        ({"annotations": [box(1, [0, 0, 9, 9], category_id=5)]}, {"unknown category": 1}),
        ({"categories": None}, {"missing list": 1, "unknown category": 1}),
        ({"categories": [*CATEGORIES, {"id": 1, "name": "cell"}]}, {"duplicate category id": 1, "duplicate category name": 1}),
    ],
)
def test_every_kind_of_fault_is_found(faulty, changes, expected):
    coco = {"images": [image(1, "a.jpg")], "annotations": [box(1, [0, 0, 9, 9])], "categories": CATEGORIES} | changes
    assert {fault.kind: fault.count for fault in check(faulty(coco))} == expected


def test_faults_are_counted_and_the_first_few_named(faulty):
    coco = {"images": [image(n, f"gone{n}.jpg") for n in range(9)], "annotations": [], "categories": CATEGORIES}
    (fault,) = check(faulty(coco), examples=2)
    assert fault.count == 9
    assert [example.rsplit("/", 1)[1] for example in fault.examples] == ["gone0.jpg", "gone1.jpg"]
    console = Console(width=200)
    with console.capture() as shown:
        console.print(faults_table([fault]))
    assert all(text in shown.get() for text in ("missing image", "9", "gone1.jpg"))


@pytest.mark.parametrize("text", ["[1, 2]", "{", ""], ids=["list", "cut", "empty"])
def test_what_is_no_json_dictionary_is_refused_by_name(faulty, text):
    split = faulty({})
    split.annotations.write_text(text)
    with pytest.raises(UserError, match=r"coco\.json is not"):
        check(split)


@pytest.mark.parametrize("name", ["bccd", "coco_tiny_by"])
def test_real_sets_are_free_of_faults(shared, name):
    assert check(find_split(shared / "data" / name, "val")) == []
