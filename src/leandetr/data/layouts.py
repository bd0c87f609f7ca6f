"""The one place that knows how data sets are laid out: what a folder or a YAML file is, which splits it has, what to say of it.

A layout's `opens` answers None where a folder is not one. `COCO` sets are read as they lie (`coco_places.py`); of the others
the boxes become COCO JSON in the user's cache (`recognised.py`). docs/data.md has the table for users.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from leandetr.data.coco_places import ROBOFLOW, find_coco, own_annotations
from leandetr.data.csv_boxes import open_csv
from leandetr.data.huggingface import open_huggingface
from leandetr.data.labelled import LabelledSet
from leandetr.data.split_names import ALL, SPLITS
from leandetr.data.voc import open_voc, open_voc_pairs
from leandetr.data.yolo import names_file, open_yolo
from leandetr.errors import UserError

logger = logging.getLogger(__name__)

CocoFiles = Mapping[str, Path]  # split -> JSON


@dataclass(frozen=True)
class Layout:
    """name: in words. form: "coco", "voc", "yolo", "csv" or "huggingface". opens: what a place holds, None where it is not
    laid out so; raises UserError where it is and nothing can be made of it. rank: layouts of a lower one win; two forms of one
    rank are ambiguous.
    """

    name: str
    form: str
    rank: int
    opens: Callable[[Path], CocoFiles | LabelledSet | None]


def _own_tree(folder: Path) -> CocoFiles | None:
    found = {split: file for split in SPLITS if (file := own_annotations(folder, split)) is not None}
    return found | find_coco(folder, known=(*found, ALL)) if found else None


def _roboflow(folder: Path) -> CocoFiles | None:
    found = find_coco(folder)
    return found if found and all(file.name == ROBOFLOW for file in found.values()) else None


def _coco_tree(folder: Path) -> CocoFiles | None:
    return None if _roboflow(folder) else find_coco(folder) or None


def _yolo_by_yaml(place: Path) -> LabelledSet | None:
    return open_yolo(place) if place.is_file() or (place / "data.yaml").is_file() else None


def _yolo_by_names(folder: Path) -> LabelledSet | None:
    return open_yolo(folder) if names_file(folder) else None


LAYOUTS = (
    Layout("COCO (annotations/instances_train.json)", "coco", 0, _own_tree),
    Layout("Pascal VOC (Annotations/ and JPEGImages/)", "voc", 1, open_voc),
    Layout("YOLO (a YAML file)", "yolo", 1, _yolo_by_yaml),
    Layout("COCO of Roboflow (train/_annotations.coco.json)", "coco", 2, _roboflow),
    Layout("COCO (a JSON a split)", "coco", 2, _coco_tree),
    Layout("VOC's XML files without lists", "voc", 2, open_voc_pairs),
    Layout("YOLO (a file of class names)", "yolo", 2, _yolo_by_names),
    Layout("YOLO (without class names)", "yolo", 3, open_yolo),
    Layout("boxes in CSV files", "csv", 3, open_csv),
    Layout("Hugging Face (a table a split)", "huggingface", 3, open_huggingface),
)


@dataclass(frozen=True)
class Recognised:
    """What a place was recognised as. layout: its name, from `LAYOUTS`; content: as its `opens` gave it."""

    place: Path
    layout: str
    form: str
    content: CocoFiles | LabelledSet

    @property
    def splits(self) -> tuple[str, ...]:
        """What there is of train, val and test; ("all",) where the images are not divided."""
        return self.content.splits if isinstance(self.content, LabelledSet) else tuple(self.content)

    @property
    def said(self) -> list[str]:
        return self.content.said if isinstance(self.content, LabelledSet) else []


def recognise(place: Path, form: str | None = None) -> Recognised | None:
    """What a folder or YAML file is; None where it is nothing that is known. Says every fallback, once a process.

    Args:
        form: that of a layout, where others are not wanted.

    Raises:
        UserError: it is laid out in two forms, or in one of which nothing can be made.
    """
    for rank in sorted({layout.rank for layout in LAYOUTS}):
        candidates = [layout for layout in LAYOUTS if layout.rank == rank and form in (None, layout.form)]
        found = [
            Recognised(place, layout.name, layout.form, content)
            for layout in candidates
            if (place.is_dir() or layout.form == "yolo") and (content := layout.opens(place)) is not None
        ]
        forms = list(dict.fromkeys(one.form for one in found))
        if len(forms) > 1:
            raise UserError(f"{place} has the files of {' and '.join(forms)}; choose one with `leandetr data convert --format`")
        if found:
            for text in found[0].said:
                say(f"{place}: {text}")
            return found[0]
    return None


def is_detection_data(place: Path) -> bool:
    """Whether a folder is laid out in a way that is known, faulty or not."""
    try:
        return recognise(place) is not None
    except UserError:
        return True


_SAID: set[str] = set()


def say(text: str) -> None:
    """Warn of a fallback, once a process."""
    if text not in _SAID:
        _SAID.add(text)
        logger.warning("%s", text)
