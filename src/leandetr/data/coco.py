"""A data set in COCO's layout, one image and its boxes at a time."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from leandetr.data.annotations import Split, class_map_of, read_annotations
from leandetr.data.decoded import Decoded, Place
from leandetr.data.images import read_image, read_pixels
from leandetr.data.splits import find_split
from leandetr.data.transforms import DetectionTransform, normalised
from leandetr.errors import UserError
from leandetr.structures import ClassMap, Detections, Preprocessing, Target

__all__ = ["CocoDataset", "Split", "class_map_of", "find_split"]

NOTHING = Detections(torch.empty(0), torch.empty(0, dtype=torch.int64), torch.empty(0, 4))


class CocoDataset(Dataset):
    """Images and their boxes, as a detector takes them. Only the annotations are held in memory, as arrays.

    The size that the JSON gives for an image is the frame of its boxes: `load_image` returns every image in that frame (see
    `read_image` for EXIF turns and resized files), and `orig_size` is that size. Crowd boxes are no training targets but
    part of `ground_truth`. Boxes that are empty, not finite, outside of their image or of an image that is not listed
    are skipped and counted in `skipped`; the others are cut at the image's edge for training.

    Args:
        split: where the annotations and images are.
        transform: makes a view of an image, see `leandetr.data.transforms`.
        class_map: the classes of the model that will read the data; categories are matched to them by name. By default
            the data's own classes.
        seed: the view of an image follows from this, the epoch and the image's id, in any process and order.
        views: of every image so many views alone, which come in turn, one an epoch; they follow from their number and the
            image's id, and are the same for every seed. By default every epoch has new ones.
        detections: image id -> a teacher's detections of the photograph. They pass through the view with the image's boxes,
            and with them keep a crop from missing everything.

    Raises:
        UserError: as `read_annotations`, and where an image is missing.
    """

    def __init__(
        self,
        split: Split,
        transform: DetectionTransform,
        class_map: ClassMap | None = None,
        seed: int = 0,
        detections: Mapping[int, Detections] | None = None,
        views: int | None = None,
    ) -> None:
        self.split, self.transform, self.seed, self.detections, self.views = split, transform, seed, detections, views
        self.annotations = read_annotations(split, class_map)
        self._decoded: Decoded | None = None
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # loader workers that persist see a new epoch too
        missing = [index for index in range(len(self)) if not os.path.isfile(self.path(index))]
        if missing:
            count = f"{len(missing)} of the {len(self)} images of {split.annotations} do not exist"
            raise UserError(f"{count}, the first is {self.path(missing[0])}; restore them or remove them from the annotations")

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        """This epoch's view of an image, (3, h, w) float32 and normalised, and its target."""
        pixels, target = self.stored(index)
        return normalised(pixels, self.preprocessing), target

    def stored(self, index: int) -> tuple[Tensor, Target]:
        """The same as (3, h, w) uint8, which loaders send to the device before they normalise it."""
        return self.view(index, int(self._epoch))

    def view(self, index: int, epoch: int) -> tuple[Tensor, Target]:
        """The view of an image that an epoch shows, (3, h, w) uint8, and its target."""
        index = range(len(self))[index]
        number = epoch if self.views is None else epoch % self.views
        mine = slice(self.annotations.first[index], self.annotations.first[index + 1])
        objects = ~self.annotations.crowd[mine]
        corners = self.annotations.boxes[mine][objects]
        corners[:, 2:] += corners[:, :2]
        labels = self.annotations.labels[mine][objects]
        corners, labels = torch.from_numpy(corners), torch.from_numpy(labels)
        taught = (self.detections or {}).get(int(self.image_ids[index]), NOTHING)
        every = torch.cat([corners, taught.boxes.to(corners)])
        size = tuple(self.annotations.sizes[index].tolist())
        photograph = read_pixels(self.path(index), size) if self._decoded is None else self._decoded[index]
        pixels, boxes, left = self.transform(photograph, every, torch.arange(len(every)), self._view_seed(index, number))
        own, others = left < len(labels), left[left >= len(labels)] - len(labels)
        target = Target(
            class_labels=labels[left[own]],
            boxes=boxes[own],
            image_id=torch.tensor([self.image_ids[index]]),
            orig_size=torch.tensor(self.annotations.sizes[index]),
            size=torch.tensor(pixels.shape[-2:]),
        )
        if self.detections is not None:
            target["detections"] = {
                "class_labels": taught.labels[others],
                "boxes": boxes[~own],
                "scores": taught.scores[others],
            }
        if self.views is not None:
            target["view"] = torch.tensor([number])
        return pixels, target

    def keep_decoded(self, place: Place) -> None:
        """Decode every photograph now and read views from its pixels from then on, with the same bits; see `Decoded`, whose
        errors are raised. To be called before a loader starts."""
        self._decoded = Decoded(place, [self.path(index) for index in range(len(self))], self.annotations.sizes)

    @property
    def preprocessing(self) -> Preprocessing:
        return self.transform.preprocessing

    @property
    def class_map(self) -> ClassMap:
        return self.annotations.class_map

    @property
    def image_ids(self) -> np.ndarray:
        """(n,) int64, in the order of the items."""
        return self.annotations.image_ids

    @property
    def skipped(self) -> int:
        """How many faulty boxes are left out."""
        return self.annotations.skipped

    def set_epoch(self, epoch: int) -> None:
        """Choose which views the next items are."""
        self._epoch.fill_(epoch)

    def path(self, index: int) -> Path:
        return self.split.images / self.annotations.file_name(index)

    def load_image(self, index: int) -> Image.Image:
        """The photograph as RGB, in the frame of its boxes. Raises UserError where the file cannot be read."""
        height, width = self.annotations.sizes[index].tolist()
        return read_image(self.path(index), (height, width))

    def ground_truth(self) -> dict[str, list[dict[str, Any]]]:
        """The annotations as a COCO dictionary for evaluation, see `Annotations.ground_truth`."""
        return self.annotations.ground_truth()

    def _view_seed(self, index: int, number: int) -> int:
        seed = self.seed if self.views is None else 0
        parts = [int(part) % 2**64 for part in (seed, number, self.image_ids[index])]
        return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])
