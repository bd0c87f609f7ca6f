"""The splits of a data set, whichever way it is laid out."""

import logging
from pathlib import Path

from leandetr.data.annotations import Split, read_coco
from leandetr.data.coco_places import images_of
from leandetr.data.labelled import LabelledSet
from leandetr.data.layouts import Recognised, recognise
from leandetr.data.recognised import recognised_annotations
from leandetr.data.split_names import ALL
from leandetr.errors import UserError
from leandetr.inputs import State, file_digest, files_digest

logger = logging.getLogger(__name__)


def find_split(data: Path | str, split: str) -> Split:
    """A split of a folder or YOLO YAML file in any layout of docs/data.md; "all" is a set that is not divided.

    Raises:
        UserError: there is no such folder or split, its layout is not known, or it is faulty (the readers say how).
    """
    data = Path(data)
    found = _recognised(data, split)
    file = recognised_annotations(found, split)
    if isinstance(found.content, LabelledSet):
        return Split(file, data if data.is_dir() else data.parent)
    return Split(file, images_of(data, split, found.content[split]), data)


def find_annotations(data: Path | str, split: str) -> Path:
    """The annotations of `find_split`, whether there are COCO's images or not; sizes of VOC's and YOLO's images are read from
    these. Raises UserError as it does."""
    return recognised_annotations(_recognised(Path(data), split), split)


def splits_of(data: Path | str) -> tuple[str, ...]:
    """What a data set has of train, val and test; ("all",) where it is not divided. Raises UserError as `find_split`."""
    return _recognised(Path(data), None).splits


def split_state(name: str, split: Split) -> State:
    """The bytes of a split's annotations, and the names and sizes of its images."""
    names = split.located([str(image.get("file_name")) for image in read_coco(split.annotations)["images"]])
    return {
        f"annotations of {name}": file_digest(split.annotations),
        f"images of {name}": f"{len(names)} {files_digest(split.images, names)}",
    }


def _recognised(data: Path, split: str | None) -> Recognised:
    if not data.is_dir() and not (data.is_file() and recognise(data)):
        fault = "is a file" if data.exists() else "does not exist"
        raise UserError(f"{data} {fault}; give the folder that holds annotations/ and {split or 'train'}/")
    found = recognise(data)
    if found is None:
        raise UserError(
            f"{data} has no annotations/instances_{split or 'train'}.json; put the boxes there in COCO's format "
            "(docs/data.md has the other layouts that are read)"
        )
    if split is not None and split not in found.splits:
        if found.splits == (ALL,):
            raise UserError(f"{data} is not divided into train and val; add --val-fraction 0.2 to divide it")
        mend = "; name its images in the data set" + (
            ", or add --val-fraction 0.2 to take some of train" if split == "val" else ""
        )
        raise UserError(f"{data} has no {split} split, only {' and '.join(found.splits)}{mend}")
    return found
