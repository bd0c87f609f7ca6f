"""Teachers that give detections and nothing else. They teach the terms that need no more, through the batch's labels.

`Predictions` has answered already: a file of COCO's results format, written by any program. Its detections pass through the
training set's augmentation. A `DetectionTeacher` is asked during training, about the augmented images themselves.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

import torch
from torchvision.ops import box_convert

from leandetr.detectors.detector import Detector
from leandetr.detectors.teachers import TorchvisionDetector
from leandetr.distillation.teacher import Teacher, View, class_columns
from leandetr.errors import UserError
from leandetr.files import read_json
from leandetr.heads import Head
from leandetr.structures import Batch, ClassMap, Detections, Preprocessing


class Predictions(Teacher):
    """Detections by image id. They reach the terms through the training set, which gives every view of an image the boxes that
    belong to it.

    Args:
        file: a list of {"image_id", "category_id", "bbox": [x, y, width, height] in pixels of the photograph, "score"}.
        class_map: the student's classes; category ids are the data set's. Detections of other categories are left out.

    Attributes:
        source: the file.
        detections: highest score first.

    Raises:
        UserError: the file cannot be read, is no such list, or has no detection of the student's classes.
    """

    def __init__(self, file: Path, class_map: ClassMap) -> None:
        self.source = str(file)
        entries = read_json(Path(file))
        if not isinstance(entries, list):
            raise UserError(f"{file} is not a list of detections in COCO's results format; name the file of results")
        found: dict[int, list[tuple[float, int, list[float]]]] = defaultdict(list)
        for number, entry in enumerate(entries):
            try:
                image, category, score = int(entry["image_id"]), entry["category_id"], float(entry["score"])
                x, y, width, height = map(float, entry["bbox"])
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(
                    f"{file}: detection {number} is not in COCO's results format ({error!r}); each needs image_id, "
                    "category_id, bbox [x, y, width, height] and score"
                ) from error
            if not all(map(math.isfinite, (x, y, width, height, score))):
                raise UserError(f"{file}: detection {number} has a bbox or score that is not finite; remove it")
            if category in class_map.dataset_ids and width > 0 and height > 0:
                found[image].append((score, class_map.contiguous(category), [x, y, x + width, y + height]))
        if not found:
            raise UserError(
                f"{file} has no detection with one of the category ids {', '.join(map(str, class_map.dataset_ids))} of the "
                "student's classes; write the data set's own ids"
            )
        self.detections = {image: _detections(rows) for image, rows in found.items()}

    def __call__(self, batch: Batch, asked: Collection[str] = ()) -> tuple[None, Batch]:
        """The batch as it is: its labels have the detections from the training set."""
        return None, batch


def _detections(rows: list[tuple[float, int, list[float]]]) -> Detections:
    scores, labels, boxes = zip(*sorted(rows, key=lambda row: -row[0]))
    return Detections(torch.tensor(scores), torch.tensor(labels), torch.tensor(boxes))


class DetectionTeacher(Teacher):
    """A detector of torchvision, which answers with detections.

    It sees each image as the student does, augmented and at the student's size, without its padding. Detections
    of classes that the student does not have are left out.

    Raises:
        UserError: the student has a class that the teacher lacks.
    """

    def __init__(self, detector: TorchvisionDetector, student: Detector) -> None:
        self.source, self.model = detector.source, detector.eval()
        self.view = View(student.preprocessing, Preprocessing(size=None, shortest_edge=1))  # plain pixels in [0, 1]
        columns = class_columns(student.class_map, detector.class_map, Head.SIGMOID) or range(len(detector.class_map))
        self.label_of = torch.full((len(detector.class_map),), -1)  # the teacher's labels -> the student's
        self.label_of[list(columns)] = torch.arange(len(student.class_map))

    def __call__(self, batch: Batch, asked: Collection[str] = ()) -> tuple[None, Batch]:
        """The batch with `detections` in its labels, see `Target`."""
        if next(self.model.parameters()).device != batch["pixel_values"].device:
            self.model.to(batch["pixel_values"].device)
        pixels, mask = self.view(batch["pixel_values"], batch["pixel_mask"])
        sizes = [(int(shown[:, 0].sum()), int(shown[0].sum())) for shown in mask]
        images = [image[:, :height, :width].clamp(0, 1) for image, (height, width) in zip(pixels, sizes, strict=True)]
        found = [self._relative(*answer) for answer in zip(self.model.detect(images), sizes, strict=True)]
        labels = [target | {"detections": taught} for target, taught in zip(batch["labels"], found, strict=True)]
        return None, batch | {"labels": labels}

    def _relative(self, found: Detections, size: tuple[int, int]) -> dict[str, torch.Tensor]:
        height, width = size
        labels = self.label_of.to(found.labels)[found.labels]
        boxes = box_convert(found.boxes, "xyxy", "cxcywh") / found.boxes.new_tensor([width, height, width, height])
        known = labels >= 0
        return {"class_labels": labels[known], "boxes": boxes[known], "scores": found.scores[known]}
