"""Images of one thing each, for pre-training a backbone: a folder a class, or what the boxes of a detection data set show.

FOLDER/train/CLASS/*.jpg    FOLDER/val/CLASS/*.jpg          (torchvision's ImageFolder)
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import is_image_file
from torchvision.transforms import v2

from leandetr.data.annotations import Split
from leandetr.data.coco import CocoDataset
from leandetr.data.images import read_pixels
from leandetr.data.layouts import is_detection_data
from leandetr.data.transforms import eval_transform, normalised
from leandetr.errors import UserError
from leandetr.files import writing_folder
from leandetr.inputs import State, files_digest
from leandetr.structures import Preprocessing

SPLITS = ("train", "val")
# ImageNet's usual crops go down to 0.08 of an image, which small backbones and short trainings do not make up for
SMALLEST_CROP = 0.35
QUALITY = 95  # of the JPEGs of cut-out boxes


class ClassificationDataset(Dataset):
    """Images and their classes, squeezed to the size of the preprocessing, as a detector of a fixed size sees its photographs.

    Args:
        folder: holds train/ and val/, which hold a folder a class.
        split: "train", whose views are cropped at random (0.35 to 1 of the area) and flipped, or "val".
        preprocessing: of a fixed size.
        seed: the view of an image follows from this, the epoch and its number.

    Raises:
        UserError: no such folder, no images, or validation images of a class that `train` does not have.
    """

    def __init__(self, folder: Path, split: str, preprocessing: Preprocessing, seed: int = 0) -> None:
        self.preprocessing, self.seed, self.views = preprocessing, seed, split == "train"
        found = {name: _image_folder(Path(folder) / name) for name in {"train", split}}
        self.names = found["train"].classes
        strangers = [name for name in found[split].classes if name not in self.names]
        if strangers:
            raise UserError(
                f"{folder}/{split} has the class {strangers[0]}, which {folder}/train lacks; put images of it there too"
            )
        # bytes of one width: Python strings would be copied into every loader worker as they are counted
        self._paths = np.array([path.encode() for path, _ in found[split].samples])
        own = np.array([self.names.index(name) for name in found[split].classes], dtype=np.int64)
        self.labels = own[np.array([label for _, label in found[split].samples], dtype=np.int64)]
        steps = [v2.RandomResizedCrop(preprocessing.size, scale=(SMALLEST_CROP, 1), antialias=True), v2.RandomHorizontalFlip()]
        self.steps = v2.Compose(steps) if self.views else v2.Resize(preprocessing.size, antialias=True)
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """A view, (3, H, W) float32 and normalised, and its class. Raises UserError where the file cannot be read."""
        pixels, label = self.stored(index)
        return normalised(pixels, self.preprocessing), label

    def stored(self, index: int) -> tuple[Tensor, int]:
        """The same as (3, H, W) uint8, which loaders send to the device before they normalise it."""
        image = tv_tensors.Image(read_pixels(Path(self._paths[index].decode())))
        parts = [self.seed % 2**64, int(self._epoch), index]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0]))
            pixels = self.steps(image)
        return pixels.as_subclass(Tensor), int(self.labels[index])

    def set_epoch(self, epoch: int) -> None:
        """Choose which views the next items are."""
        self._epoch.fill_(epoch)


def is_image_folder(data: Path | str) -> bool:
    """Whether a folder holds classes (train/CLASS/), not boxes."""
    train = Path(data) / "train"
    if (Path(data) / "annotations").is_dir() or not (train.is_dir() and any(folder.is_dir() for folder in train.iterdir())):
        return False
    return not is_detection_data(Path(data))


def image_folder_state(data: Path | str) -> State:
    """The names and sizes of the images in a folder of classes."""
    files = sorted(str(file.relative_to(data)) for file in Path(data).glob("*/*/*") if file.is_file())
    return {f"images of {data}": f"{len(files)} {files_digest(Path(data), files)}"}


def write_crops(splits: dict[str, Split], out: Path) -> Path:
    """Cut out what the boxes of a detection data set show: a JPEG a box in `out/SPLIT/NUMBER-CLASS/`, crowds left out.

    Args:
        splits: "train" and "val". out: the folder; it gets its name when it is whole, and one that is there is left as it is.

    Raises:
        UserError: as `CocoDataset`.
    """
    if out.is_dir():
        return out
    sets = {name: CocoDataset(split, eval_transform(Preprocessing())) for name, split in splits.items()}
    names = sets["train"].class_map.names
    with writing_folder(out) as temporary:
        for name, dataset in sets.items():
            known = dataset.annotations
            titles = [re.sub(r"[^\w-]+", "_", title) for title in names]
            folders = [temporary / name / f"{label:04d}-{title}" for label, title in enumerate(titles)]
            for folder in folders:
                folder.mkdir(parents=True)
            labels = [names.index(title) for title in dataset.class_map.names]
            for index in range(len(dataset)):
                boxes = range(known.first[index], known.first[index + 1])
                if not boxes:
                    continue
                image = dataset.load_image(index)
                for box in boxes:
                    if not known.crowd[box]:
                        file = folders[labels[known.labels[box]]] / f"{known.image_ids[index]}-{box}.jpg"
                        image.crop(_pixels(known.boxes[box], image.size)).save(file, quality=QUALITY)
    return out


def _pixels(box: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """(x, y, width, height) -> the whole pixels that it touches, inside of an image of (width, height)."""
    low = np.clip(np.floor(box[:2]), 0, np.array(size) - 1)
    high = np.clip(np.ceil(box[:2] + box[2:]), low + 1, size)
    return (*low.astype(int).tolist(), *high.astype(int).tolist())


def _image_folder(folder: Path) -> ImageFolder:
    if not folder.is_dir() or not any(child.is_dir() for child in folder.iterdir()):
        raise UserError(f"{folder} has no folders of classes; put the images into {folder}/CLASS/")
    found = ImageFolder(folder, is_valid_file=is_image_file, allow_empty=True)
    if not found.samples:
        raise UserError(f"{folder} has no images in its folders of classes; put some there")
    return found
