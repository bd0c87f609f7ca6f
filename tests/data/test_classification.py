"""Folders of classes and cut-out boxes: sizes, classes by name, views that can be made again, faults in one sentence."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from leandetr.data.annotations import Split
from leandetr.data.batches import collate
from leandetr.data.classification import ClassificationDataset, is_image_folder, write_crops
from leandetr.errors import UserError
from leandetr.structures import Preprocessing

PLAIN = Preprocessing(size=(32, 48), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def picture(path, color, size=(60, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


@pytest.fixture
def folder(tmp_path):
    for split, classes in (("train", ("red", "blue", "green")), ("val", ("blue", "red"))):
        for name in classes:
            picture(tmp_path / "images" / split / name / "a.png", name)
    return tmp_path / "images"


def test_items_are_normalised_images_of_one_size_and_classes_by_name(folder):
    assert is_image_folder(folder)
    train, val = (ClassificationDataset(folder, split, PLAIN) for split in ("train", "val"))
    assert train.names == val.names == ["blue", "green", "red"]
    assert [train[i][1] for i in range(3)] == [0, 1, 2]
    assert [val[i][1] for i in range(2)] == [0, 2]
    pixels, _ = val[1]
    assert pixels.shape == (3, 32, 48)
    torch.testing.assert_close(pixels[:, 0, 0], torch.tensor([1.0, -1.0, -1.0]))
    batch = collate([train[0], train[2]])
    assert batch["pixel_values"].shape == (2, 3, 32, 48)
    assert batch["labels"].tolist() == [0, 2]


def test_views_follow_from_seed_epoch_and_image(folder):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "train" / "red" / "a.png")
    first, other = (ClassificationDataset(folder, "train", PLAIN, seed) for seed in (0, 1))
    state = torch.get_rng_state()
    assert torch.equal(first[2][0], first[2][0])
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first[2][0], other[2][0])
    again = first[2][0]
    first.set_epoch(1)
    assert not torch.equal(first[2][0], again)


def test_boxes_become_images_of_their_classes(tmp_path):
    photograph = np.zeros((40, 50, 3), np.uint8)
    photograph[10:20, 5:25] = (255, 0, 0)
    photograph[30:, 40:] = (0, 255, 0)
    (tmp_path / "photographs").mkdir()
    Image.fromarray(photograph).save(tmp_path / "photographs" / "a.png")
    boxes = [(3, [5, 10, 20, 10], 0), (9, [40.4, 30.2, 60, 60], 0), (3, [0, 0, 50, 40], 1)]
    coco = {
        "images": [{"id": 7, "file_name": "a.png", "height": 40, "width": 50}],
        "categories": [{"id": 3, "name": "red/box"}, {"id": 5, "name": "none"}, {"id": 9, "name": "green"}],
        "annotations": [
            {"id": n, "image_id": 7, "category_id": c, "bbox": box, "area": 1, "iscrowd": crowd}
            for n, (c, box, crowd) in enumerate(boxes)
        ],
    }
    (tmp_path / "all.json").write_text(json.dumps(coco))
    split = Split(tmp_path / "all.json", tmp_path / "photographs")
    crops = write_crops({"train": split, "val": split}, tmp_path / "crops")
    files = sorted(path.relative_to(crops).as_posix() for path in crops.rglob("*.jpg") if "train" in path.parts)
    assert files == ["train/0000-red_box/7-0.jpg", "train/0002-green/7-1.jpg"]
    sizes = [Image.open(crops / file).size for file in files]
    assert sizes == [(20, 10), (10, 10)]
    assert np.asarray(Image.open(crops / files[0]))[5, 10].tolist() == pytest.approx([255, 0, 0], abs=4)
    dataset = ClassificationDataset(crops, "val", PLAIN)
    assert dataset.labels.tolist() == [0, 2]
    before = (crops / files[0]).stat().st_mtime_ns
    write_crops({"train": split, "val": split}, crops)
    assert (crops / files[0]).stat().st_mtime_ns == before


def test_faults_are_one_sentence(folder, tmp_path):
    picture(folder / "val" / "pink" / "a.png", "pink")
    with pytest.raises(UserError, match=r"has the class pink, which .*train lacks"):
        ClassificationDataset(folder, "val", PLAIN)
    with pytest.raises(UserError, match="has no folders of classes; put the images into"):
        ClassificationDataset(tmp_path, "train", PLAIN)
    (tmp_path / "empty" / "train" / "red").mkdir(parents=True)
    with pytest.raises(UserError, match="has no images in its folders of classes"):
        ClassificationDataset(tmp_path / "empty", "train", PLAIN)
    assert not is_image_folder(tmp_path)
    (folder / "train" / "red" / "a.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="is not an image"):
        ClassificationDataset(folder, "train", PLAIN)[2]
