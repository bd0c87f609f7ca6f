"""The validation images of a report: the first that hold objects, with what every row found on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from leandetr.data.coco import CocoDataset, Split
from leandetr.data.transforms import eval_transform
from leandetr.report.gallery import Picture
from leandetr.structures import ClassMap, Detections, Preprocessing

Results = Sequence[Mapping[str, Any]]


def validation_pictures(split: Split, found: Mapping[str, tuple[Results, ClassMap]], count: int) -> list[Picture]:
    """Pictures whose labels are the data set's own classes, in the order of `class_map_of(split)`.

    Args:
        split: the images and their boxes.
        found: a row's name -> its detections in COCO's results format, and the classes of the model that made them. Classes
            are matched by name; detections of classes that the data set does not have are left out.
        count: at most so many.
    """
    dataset = CocoDataset(split, eval_transform(Preprocessing()))
    classes, image_ids = dataset.class_map, dataset.image_ids.tolist()
    truth = _by_image(dataset.ground_truth()["annotations"], classes, classes, image_ids)
    chosen = [index for index, image in enumerate(image_ids) if image in truth][:count]
    shown = [image_ids[index] for index in chosen]
    answers = {name: _by_image(results, theirs, classes, shown) for name, (results, theirs) in found.items()}
    nothing = Detections(torch.zeros(0), torch.zeros(0, dtype=torch.long), torch.zeros(0, 4))
    return [
        Picture(
            dataset.path(index).name,
            dataset.load_image(index),
            truth[image],
            {name: boxes.get(image, nothing) for name, boxes in answers.items()},
        )
        for index, image in zip(chosen, shown)
    ]


def _by_image(results: Results, theirs: ClassMap, ours: ClassMap, images: Iterable[int]) -> dict[int, Detections]:
    """COCO annotations or results with the category ids of `theirs` -> the detections of those images that have any."""
    label_of = {
        category: ours.names.index(name) for name, category in zip(theirs.names, theirs.dataset_ids) if name in ours.names
    }
    grouped: dict[int, list[Mapping[str, Any]]] = {image: [] for image in images}
    for entry in results:
        if entry["image_id"] in grouped and entry["category_id"] in label_of:
            grouped[entry["image_id"]].append(entry)
    return {image: _detections(entries, label_of) for image, entries in grouped.items() if entries}


def _detections(entries: Results, label_of: Mapping[int, int]) -> Detections:
    corner = torch.tensor([entry["bbox"] for entry in entries], dtype=torch.float32)
    return Detections(
        torch.tensor([entry.get("score", 1.0) for entry in entries]),
        torch.tensor([label_of[entry["category_id"]] for entry in entries]),
        torch.cat([corner[:, :2], corner[:, :2] + corner[:, 2:]], 1),
    )
