"""What a COCO data set promises: the right boxes and ids for every image, reproducible views, one sentence for bad input."""

import json
import logging
import pickle

import numpy as np
import pytest
import torch
from faster_coco_eval import COCO, mask
from PIL import Image
from torch.utils.data import DataLoader

from leandetr.boxes import to_corners
from leandetr.data.batches import collate
from leandetr.data.check import check
from leandetr.data.coco import CocoDataset, class_map_of, find_split
from leandetr.data.transforms import eval_transform, train_transform
from leandetr.errors import UserError
from leandetr.structures import ClassMap, Preprocessing

PLAIN = eval_transform(Preprocessing(size=(64, 64)))
RUNS = np.zeros((50, 100), dtype=np.uint8, order="F")
RUNS[10:15, 3:5] = 1
FREE = eval_transform(Preprocessing(size=None, shortest_edge=48, longest_edge=96))


def box(number, bbox, image_id=1, category_id=3, **more):
    return {"id": number, "image_id": image_id, "category_id": category_id, "bbox": bbox, **more}


def coco(**changes):
    """Three images of 100 x 50, the last one without boxes; categories with a gap."""
    images = [{"id": n, "file_name": f"{n}.png", "width": 100, "height": 50} for n in (7, 1, 4)]
    annotations = [
        box(10, [10, 5, 20, 10]),
        box(11, [50, 25, 50, 25], image_id=7, category_id=9),
        box(12, [0, 0, 50, 50], iscrowd=1),
    ]
    categories = [{"id": 9, "name": "zebra"}, {"id": 3, "name": "cat"}]
    return {"images": images, "annotations": annotations, "categories": categories} | changes


@pytest.fixture
def split_of(tmp_path):
    def write(content, names=("train", "instances_train.json")):
        (tmp_path / names[0]).mkdir()
        (tmp_path / "annotations").mkdir()
        for number in (1, 4, 7):
            Image.fromarray(np.full((50, 100, 3), number, dtype=np.uint8)).save(tmp_path / names[0] / f"{number}.png")
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / "annotations" / names[1]).write_text(text)
        return find_split(tmp_path, "train")

    return write


@pytest.mark.parametrize(
    "names",
    [("train", "instances_train.json"), ("train2017", "instances_train2017.json"), ("train2017", "instances_train.json")],
)
def test_both_namings_are_recognised(split_of, names):
    split = split_of(coco(), names)
    assert (split.images.name, split.annotations.name) == names


def test_items_hold_the_boxes_of_their_image(split_of):
    dataset = CocoDataset(split_of(coco()), PLAIN)
    first, second, empty = (dataset[index] for index in range(3))
    assert [path.name for path in map(dataset.path, range(3))] == ["7.png", "1.png", "4.png"]
    assert dataset.class_map == ClassMap(names=("cat", "zebra"), dataset_ids=(3, 9))
    torch.testing.assert_close(first[0], torch.full((3, 64, 64), 7 / 255))
    torch.testing.assert_close(first[1]["boxes"], torch.tensor([[0.75, 0.75, 0.5, 0.5]]))
    torch.testing.assert_close(second[1]["boxes"], torch.tensor([[0.2, 0.2, 0.2, 0.2]]))  # without the crowd
    assert [item[1]["class_labels"].tolist() for item in (first, second, empty)] == [[1], [0], []]
    assert [item[1]["image_id"].tolist() for item in (first, second, empty)] == [[7], [1], [4]]
    assert empty[1]["boxes"].shape == (0, 4)
    assert first[1]["orig_size"].tolist() == [50, 100]
    assert first[1]["size"].tolist() == [64, 64]


def test_ground_truth_keeps_crowds_and_dataset_ids(split_of):
    truth = CocoDataset(split_of(coco()), PLAIN).ground_truth()
    found = [(a["id"], a["image_id"], a["category_id"], a["bbox"], a["area"], a["iscrowd"]) for a in truth["annotations"]]
    assert found == [
        (1, 7, 9, [50, 25, 50, 25], 1250, 0),
        (2, 1, 3, [10, 5, 20, 10], 200, 0),
        (3, 1, 3, [0, 0, 50, 50], 2500, 1),
    ]
    assert truth["categories"] == [{"id": 3, "name": "cat"}, {"id": 9, "name": "zebra"}]
    assert len(COCO(json.loads(json.dumps(truth))).imgs) == 3


def test_categories_are_matched_to_a_models_classes_by_name(split_of):
    model = ClassMap(names=("dog", "zebra", "cat"), dataset_ids=(1, 2, 5))
    dataset = CocoDataset(split_of(coco()), PLAIN, class_map=model)
    assert [dataset[index][1]["class_labels"].tolist() for index in range(2)] == [[1], [2]]
    assert [a["category_id"] for a in dataset.ground_truth()["annotations"]] == [2, 5, 5]
    assert dataset.class_map is model


def test_faulty_boxes_are_left_out_counted_and_reported(split_of, caplog):
    faults = [[200, 0, 9, 9], [5, 5, 0, 9], [5, 5, 9, -2], [float("nan"), 5, 9, 9], [1, 2, 3], ["a", 1, 2, 3], None]
    annotations = [box(n, bbox) for n, bbox in enumerate(faults)]
    annotations += [box(50, [1, 1, 5, 5], image_id=99), box(51, [90, 40, 30, 30]), box(52, [80.5, 40, 20, 10.0])]
    with caplog.at_level(logging.WARNING):
        dataset = CocoDataset(split_of(coco(annotations=annotations)), PLAIN)
    assert dataset.skipped == len(faults) + 1
    assert "8 faulty boxes are skipped, 1 are cut" in caplog.text
    corners = to_corners(dataset[1][1]["boxes"]) * torch.tensor([100, 50, 100, 50])
    torch.testing.assert_close(corners, torch.tensor([[90.0, 40, 100, 50], [80.5, 40, 100, 50]]))
    assert [a["bbox"] for a in dataset.ground_truth()["annotations"]] == [[90, 40, 30, 30], [80.5, 40, 20, 10]]


@pytest.mark.parametrize(
    "size", [{}, {"width": None, "height": None}, {"width": 0, "height": 0}, {"width": "100", "height": "50"}]
)
def test_a_size_that_the_json_does_not_give_is_the_files(split_of, size):
    images = [{"id": n, "file_name": f"{n}.png"} | size for n in (7, 1, 4)]
    split = split_of(coco(images=images))
    assert CocoDataset(split, PLAIN).annotations.sizes.tolist() == [[50, 100]] * 3
    assert check(split) == []


@pytest.mark.parametrize(
    ("shape", "box"),
    [
        ({"segmentation": [[10, 5, 30, 5, 30, 15], [12, 20, 14, 20, 14, 25]]}, [10, 5, 20, 20]),
        ({"segmentation": [[10, 5, 30, 5, 30, 15]], "bbox": []}, [10, 5, 20, 10]),
        ({"segmentation": {"size": [50, 100], "counts": [3 * 50 + 10, 5, 45, 5, 4785]}}, [3, 10, 2, 5]),
        ({"segmentation": {"size": [50, 100], "counts": mask.encode(RUNS)["counts"].decode()}}, [3, 10, 2, 5]),
    ],
)
def test_a_box_is_drawn_around_a_shape_without_one(split_of, shape, box):
    split = split_of(coco(annotations=[{"id": 1, "image_id": 7, "category_id": 3} | shape]))
    dataset = CocoDataset(split, PLAIN)
    assert [entry["bbox"] for entry in dataset.ground_truth()["annotations"]] == [box]
    assert dataset.skipped == 0
    assert check(split) == []


@pytest.mark.parametrize(("value", "crowd"), [("0", 0), ("false", 0), (None, 0), (False, 0), ("1", 1), ("true", 1), (True, 1)])
def test_iscrowd_is_read_as_tools_write_it(split_of, value, crowd):
    split = split_of(coco(annotations=[box(1, [0, 0, 9, 9], iscrowd=value)]))
    assert [entry["iscrowd"] for entry in CocoDataset(split, PLAIN).ground_truth()["annotations"]] == [crowd]


def test_boxes_in_parts_of_the_image_are_refused(split_of):
    split = split_of(coco(annotations=[box(1, [0.1, 0.2, 0.3, 0.3]), box(2, [0, 0, 1, 1])]))
    with pytest.raises(
        UserError, match=r"instances_train\.json gives its boxes in parts of the image, from 0 to 1; COCO has pixels"
    ):
        CocoDataset(split, PLAIN)


def test_a_mark_of_windows_editors_in_front_is_no_fault(split_of):
    split = split_of("\ufeff" + json.dumps(coco()))
    assert len(CocoDataset(split, PLAIN)) == 3


def test_a_set_without_any_box_is_a_set(split_of):
    dataset = CocoDataset(split_of(coco(annotations=[])), PLAIN)
    assert [len(target["boxes"]) for _, target in dataset] == [0, 0, 0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ([1], "is not COCO"),
        ({"a": 1}, "no list of 'images'"),
        (coco(images=[]), "lists no images"),
        (coco(images=[{"id": "x", "file_name": "1.png", "height": 5, "width": 5}]), "other than a whole number as 'id'"),
        (coco(images=coco()["images"] * 2), "image id 1 occurs twice"),
        (coco(categories=[]), "lists no categories"),
        (coco(categories=[{"id": 3, "name": "cat"}]), "box of category 9, which its 'categories' lack"),
        (coco(categories=[{"id": 3, "name": "cat"}, {"id": 9, "name": "cat"}]), "category name cat occurs twice"),
        (coco(images=[{"id": 1, "file_name": "gone.png", "height": 5, "width": 5}]), r"the first is .*gone\.png"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence_that_names_the_file(split_of, content, message):
    split = split_of(content)
    with pytest.raises(UserError, match=message) as caught:
        CocoDataset(split, PLAIN)
    assert "instances_train.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_classes_that_the_model_does_not_know_are_refused_with_both_lists(split_of):
    with pytest.raises(UserError, match=r"\(zebra\): the data has cat, zebra, the model cat, horse"):
        CocoDataset(split_of(coco()), PLAIN, class_map=ClassMap(names=("cat", "horse"), dataset_ids=(1, 2)))


def test_folders_that_lack_something_are_refused_by_name(tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist"):
        find_split(tmp_path / "nowhere", "train")
    with pytest.raises(UserError, match=r"no annotations/instances_train\.json"):
        find_split(tmp_path, "val")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val.json").write_text("{}")
    with pytest.raises(UserError, match="no folder val/"):
        find_split(tmp_path, "val")
    with pytest.raises(UserError, match="is a file"):
        find_split(tmp_path / "annotations" / "instances_val.json", "val")


def test_a_truncated_image_is_named_when_it_is_read(split_of):
    split = split_of(coco())
    dataset = CocoDataset(split, PLAIN)
    (split.images / "7.png").write_bytes((split.images / "7.png").read_bytes()[:60])
    with pytest.raises(UserError, match=r"7\.png cannot be decoded"):
        dataset[0]


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """Six images of noise, of which no two augmented views are alike."""
    folder = tmp_path_factory.mktemp("noise")
    (folder / "val").mkdir()
    (folder / "annotations").mkdir()
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "val" / f"{number}.png")
    images = [{"id": n, "file_name": f"{n}.png", "width": 80, "height": 60} for n in range(6)]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "noise"}]}
    (folder / "annotations" / "instances_val.json").write_text(json.dumps(content))
    return find_split(folder, "val")


def views_of(split, **options):
    return CocoDataset(split, train_transform(Preprocessing(size=(32, 32)), "detr"), **options)


def equal(a, b):
    return [torch.equal(x[0], y[0]) for x, y in zip(a, b, strict=True)]


def test_views_follow_from_seed_epoch_and_image_in_any_order_and_process(noise):
    dataset = views_of(noise)
    views = [dataset[index] for index in range(6)]
    assert all(equal(views, [dataset[index] for index in reversed(range(6))][::-1]))
    assert all(equal(views, list(pickle.loads(pickle.dumps(dataset)))))
    assert not all(equal(views, list(views_of(noise, seed=1))))
    dataset.set_epoch(1)
    assert not all(equal(views, list(dataset)))
    dataset.set_epoch(0)
    assert all(equal(views, list(dataset)))


def test_a_number_of_views_come_in_turn_and_are_the_same_for_every_seed(noise):
    dataset, other = views_of(noise, views=2), views_of(noise, views=3, seed=9)
    shown = []
    for epoch in range(3):
        dataset.set_epoch(epoch)
        shown.append(list(dataset))
        assert [int(target["view"]) for _, target in dataset] == [epoch % 2] * 6
    assert all(equal(shown[0], shown[2]))
    assert not all(equal(shown[0], shown[1]))
    other.set_epoch(1)
    assert all(equal(shown[1], list(other)))
    assert "view" not in views_of(noise)[0][1]


def test_workers_that_persist_follow_the_epoch(noise):
    dataset = views_of(noise)
    loader = DataLoader(dataset, batch_size=2, num_workers=1, collate_fn=collate, persistent_workers=True)
    for epoch in (0, 3):
        dataset.set_epoch(epoch)
        loaded = [image for batch in loader for image in batch["pixel_values"]]
        assert all(torch.equal(image, dataset[index][0]) for index, image in enumerate(loaded))


def test_batches_are_padded_to_their_largest_image_and_masked(split_of):
    dataset = CocoDataset(split_of(coco()), FREE)
    tall = (torch.ones(3, 70, 20), dataset[1][1])
    batch = collate([dataset[0], tall])
    assert batch["pixel_values"].shape == (2, 3, 70, 96)
    assert batch["pixel_mask"].dtype == torch.int64
    assert batch["pixel_mask"].sum((1, 2)).tolist() == [48 * 96, 70 * 20]
    assert torch.equal(batch["pixel_values"][0, :, :48], dataset[0][0])
    assert (batch["pixel_values"] * (1 - batch["pixel_mask"][:, None])).abs().sum() == 0
    assert [target["image_id"].item() for target in batch["labels"]] == [7, 1]


def test_cocos_ids_with_gaps_survive_the_round_trip(shared):
    split = find_split(shared / "data/coco_tiny_by", "val")
    original = json.loads(split.annotations.read_text())
    dataset = CocoDataset(split, eval_transform(Preprocessing(size=(640, 640))))
    assert len(dataset.class_map) == 80
    assert (dataset.class_map.dataset_ids[0], dataset.class_map.dataset_ids[-1]) == (1, 90)
    assert class_map_of(split) == dataset.class_map
    facts = [
        sorted((a["image_id"], a["category_id"], tuple(a["bbox"]), a["area"], a["iscrowd"]) for a in source["annotations"])
        for source in (original, dataset.ground_truth())
    ]
    assert facts[0] == facts[1]
    assert sum(a[-1] for a in facts[0]) == 6
    for index in range(5):
        height, width = dataset[index][1]["orig_size"].tolist()
        boxes = to_corners(dataset[index][1]["boxes"]) * torch.tensor([width, height, width, height])
        mine = [a for a in original["annotations"] if a["image_id"] == dataset.image_ids[index] and not a["iscrowd"]]
        corners = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in mine)]).reshape(-1, 4)
        torch.testing.assert_close(boxes, corners, atol=1e-2, rtol=0)
        labels = [dataset.class_map.dataset_ids[label] for label in dataset[index][1]["class_labels"]]
        assert labels == [a["category_id"] for a in mine]


def test_crowds_of_real_photographs_are_ground_truth_but_no_targets(shared):
    dataset = CocoDataset(find_split(shared / "data/coco_person", "val"), FREE)
    truth = dataset.ground_truth()["annotations"]
    assert sum(a["iscrowd"] for a in truth) == 17
    assert dataset.skipped == 0
    index = dataset.image_ids.tolist().index(next(a["image_id"] for a in truth if a["iscrowd"]))
    persons = [a for a in truth if a["image_id"] == dataset.image_ids[index] and not a["iscrowd"]]
    assert (
        len(dataset[index][1]["boxes"]) <= len(persons) < len([a for a in truth if a["image_id"] == dataset.image_ids[index]])
    )


def test_images_that_cannot_be_read_are_left_out_with_their_boxes_and_counted(split_of, caplog):
    split = split_of(coco())
    whole = CocoDataset(split, PLAIN)
    photograph = split.images / "7.png"
    for content in (photograph.read_bytes()[:-30], b"text"):  # its end is missing; no image
        photograph.write_bytes(content)
        caplog.clear()
        dataset = CocoDataset(split, PLAIN)
        assert len(dataset) == len(whole) - 1
        assert 7 not in dataset.image_ids
        assert dataset.skipped == whole.skipped
        assert "1 images are left out with their boxes: unreadable image (1, as" in caplog.text
        assert [dataset[index][1]["image_id"].item() for index in range(len(dataset))] == dataset.image_ids.tolist()
        boxes = {entry["image_id"] for entry in dataset.ground_truth()["annotations"]}
        assert boxes == {entry["image_id"] for entry in whole.ground_truth()["annotations"]} - {7}
    for path in split.images.iterdir():
        path.write_bytes(b"text")
    with pytest.raises(UserError, match="none of its images can be read"):
        CocoDataset(split, PLAIN)
