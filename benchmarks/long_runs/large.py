"""A data set of 100,000 annotations and 1,000 classes, and what is done with it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLASSES = 1000
IMAGES = 10_000
OBJECTS = 10  # in an image
FOUND = 30  # detections in an image
SIDE = 64
FILES = 50  # different ones; the others are links
VAL = 50


def make(folder: Path, scale: float) -> Path:
    """A COCO folder, and `results.json` with detections on its training images: the objects moved, and as many strangers."""
    rng = np.random.default_rng(0)
    categories = [{"id": number, "name": f"class {number}"} for number in range(1, CLASSES + 1)]
    (folder / "annotations").mkdir(parents=True)
    for split, count in {"train": int(IMAGES * scale), "val": VAL}.items():
        images = _photographs(folder / split, count, rng)
        boxes = _boxes(rng, count * OBJECTS)
        labels = rng.integers(1, CLASSES + 1, len(boxes)).tolist()
        annotations = [
            {
                "id": n + 1,
                "image_id": n // OBJECTS + 1,
                "category_id": label,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
            }
            for n, (label, box) in enumerate(zip(labels, boxes, strict=True))
        ]
        coco = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"annotations/instances_{split}.json").write_text(json.dumps(coco))
        if split == "train":
            (folder / "results.json").write_text(json.dumps(_detections(rng, annotations, count)))
    return folder


def _photographs(folder: Path, count: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    folder.mkdir()
    for number in range(count):
        place = folder / f"{number + 1:06d}.jpg"
        if number < FILES:
            Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(place)
        else:
            os.link(folder / f"{number % FILES + 1:06d}.jpg", place)
    return [{"id": n + 1, "file_name": f"{n + 1:06d}.jpg", "height": SIDE, "width": SIDE} for n in range(count)]


def _boxes(rng: np.random.Generator, count: int) -> list[list[float]]:
    corners, sides = rng.uniform(0, SIDE / 2, (count, 2)), rng.uniform(4, SIDE / 2, (count, 2))
    return np.concatenate([corners, sides], axis=1).round(2).tolist()


def _detections(rng: np.random.Generator, annotations: list[dict[str, Any]], images: int) -> list[dict[str, Any]]:
    moved = np.array([entry["bbox"] for entry in annotations]) + rng.normal(0, 1, (len(annotations), 4))
    rows = [(entry["image_id"], entry["category_id"], box) for entry, box in zip(annotations, moved.tolist(), strict=True)]
    for number, box in enumerate(_boxes(rng, images * (FOUND - OBJECTS))):
        rows.append((number % images + 1, int(rng.integers(1, CLASSES + 1)), box))
    scores = rng.uniform(0, 1, len(rows)).round(4).tolist()
    return [
        {"image_id": image, "category_id": label, "bbox": [round(max(side, 0.5), 2) for side in box], "score": score}
        for (image, label, box), score in zip(rows, scores, strict=True)
    ]


def reference(annotations: Path, results: Path) -> None:
    """What faster-coco-eval alone takes for a fifth of the images: it holds a kilobyte for every image and class. SystemExit
    where its AP is not that of `evaluate_results`."""
    from faster_coco_eval import COCO, COCOeval_faster

    from leandetr.evaluation.coco import evaluate_results

    last = IMAGES // 5
    coco = json.loads(annotations.read_text())
    coco["images"] = [image for image in coco["images"] if image["id"] <= last]
    coco["annotations"] = [entry for entry in coco["annotations"] if entry["image_id"] <= last]
    found = [entry for entry in json.loads(results.read_text()) if entry["image_id"] <= last]
    own = evaluate_results(coco, found).ap
    truth = COCO(coco)
    judged = COCOeval_faster(truth, truth.loadRes(found), "bbox", print_function=lambda *_: None)
    judged.run()
    if abs(own - judged.stats[0]) > 1e-12:
        raise SystemExit(f"AP {own}, by faster-coco-eval {judged.stats[0]}")


def intervals(annotations: Path, results: Path) -> None:
    """What a report's intervals are drawn from."""
    from leandetr.evaluation.bootstrap import bootstrap

    bootstrap(json.loads(annotations.read_text()), json.loads(results.read_text()))


def pictures(folder: Path, out: Path) -> None:
    """The report's page of images."""
    from leandetr.data.coco import class_map_of
    from leandetr.data.splits import DataFolder
    from leandetr.report import write_images
    from leandetr.report.validation import validation_pictures

    split, results = DataFolder(folder).split("train"), json.loads((folder / "results.json").read_text())
    classes = class_map_of(split)
    write_images(validation_pictures(split, {f"row {n}": (results, classes) for n in range(4)}, 12), classes.names, out)
