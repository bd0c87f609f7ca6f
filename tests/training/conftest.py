"""Tiny trainings: eight synthetic photographs of 64 x 64, detectors of a few thousand weights."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from leandetr.data.coco import CocoDataset, Split, class_map_of
from leandetr.data.transforms import eval_transform, train_transform
from leandetr.detectors.create import create
from leandetr.training.config import Training

SMALL = {"d_model": 32, "decoder_layers": 2, "encoder_layers": 1, "num_queries": 6, "decoder_ffn_dim": 32}


def write_split(folder, split, count, seed):
    """Images of noise with two plain boxes each: with equal numbers of boxes every way of cutting a batch has the same loss."""
    generator = np.random.default_rng(seed)
    images, annotations = [], []
    (folder / split).mkdir(parents=True)
    for number in range(1, count + 1):
        pixels = generator.integers(0, 80, (64, 64, 3), dtype=np.uint8)
        for part in range(2):
            x, y, side = generator.integers(0, 32), generator.integers(0, 32), generator.integers(16, 32)
            category = int(generator.integers(0, 2))
            pixels[y : y + side, x : x + side, category] = 255
            box = [int(x), int(y), int(side), int(side)]
            entry = {"id": 2 * number + part, "image_id": number, "category_id": 3 + 4 * category, "bbox": box}
            annotations.append(entry | {"area": int(side) ** 2, "iscrowd": 0})
        Image.fromarray(pixels).save(folder / split / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 64, "width": 64})
    categories = [{"id": 3, "name": "red"}, {"id": 7, "name": "green"}]
    (folder / "annotations").mkdir(exist_ok=True)
    coco = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(coco))


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_split(folder, "train", 8, seed=0)
    write_split(folder, "val", 3, seed=1)
    return folder


@pytest.fixture
def prepared(data):
    """prepared(name, augment=..., **overrides) -> a tiny detector, its training and its validation set."""

    def build(name="detr", augment="ssd", **overrides):
        splits = [Split(data / "annotations" / f"instances_{split}.json", data / split) for split in ("train", "val")]
        torch.manual_seed(0)
        detector = create(name, class_map_of(splits[0]), (64, 64), backbone="test_resnet", overrides=SMALL | overrides)
        train = CocoDataset(splits[0], train_transform(detector.preprocessing, augment), detector.class_map)
        return detector, train, CocoDataset(splits[1], eval_transform(detector.preprocessing), detector.class_map)

    return build


@pytest.fixture
def short():
    """short(**changes) -> two epochs of four steps, in single precision, read in this process."""

    def settings(**changes):
        return Training(
            **{"epochs": 2, "batch_size": 2, "lr": 1e-3, "ema": 0.9, "workers": 0, "precision": "float32"} | changes
        )

    return settings
