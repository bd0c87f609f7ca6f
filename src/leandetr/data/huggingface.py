"""Data sets in the form of Hugging Face's `datasets`: a row an image, with its boxes, in Parquet, Arrow or `metadata.jsonl`.

Boxes are [x, y, width, height] in pixels of the upright image, by the library's convention; sets of corners (left, upper,
right, lower) are told from them and read as such. Images that lie in the tables are written into the user's cache.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from leandetr.data.annotations import size_of
from leandetr.data.cache import cache_folder, state_of_places
from leandetr.data.entries import finite, is_crowd, is_whole
from leandetr.data.faults import Fault, Faults, Unusable
from leandetr.data.file_names import leading_out
from leandetr.data.images import same_proportions
from leandetr.data.labelled import SUFFIXES, Labelled, LabelledImage, LabelledObject, LabelledSet, refusal, sizes_of, tracked
from leandetr.data.tables import LINES, Columns, class_names, columns_of, find_tables, rows_of
from leandetr.files import writing

EDGE = 1.0  # pixels by which a box may reach over the edge: rounding
CORNERS = 0.25  # of the boxes, if they leave their images as widths and heights and all fit as corners, they are corners
FEW = 5  # boxes: of fewer it is not told
UNNAMED = "class number without a name"
MOST = 8  # names that a sentence holds


@dataclass(frozen=True)
class _Source:
    """One data set. images: the folder in the cache for images that lie in its tables."""

    folder: Path
    columns: Columns
    names: list[str] | None
    images: Path


def open_huggingface(folder: Path) -> LabelledSet | None:
    """A folder of tables with boxes.

    Raises:
        UserError: several configurations, a table that cannot be read, or pyarrow is needed and not installed.
    """
    tables = find_tables(folder) if folder.is_dir() else {}
    if not tables:
        return None
    files = [file for split in tables.values() for file in split]
    columns = columns_of(files[0])
    if columns is None:
        return None
    names = class_names(folder, files[0], columns)
    places = [file.parent if file.name == LINES else file for file in files]
    places += [file for file in (folder / "README.md", folder / "dataset_infos.json") if file.is_file()]
    places = list(dict.fromkeys(places))

    def read() -> Labelled:
        images = cache_folder(state_of_places(folder, places)) / "images"
        return _read(_Source(folder, columns, names, images), tables)

    return LabelledSet(tuple(tables), places, [], read)


def _read(source: _Source, tables: Mapping[str, Sequence[Path]]) -> Labelled:
    """The rows of all tables; classes in the order of their numbers, those that are text in alphabetical order."""
    faults = {split: Faults() for split in tables}
    read: dict[str, list[LabelledImage]] = {split: [] for split in tables}
    for split, files in tables.items():
        rows = ((file, number, row) for file in files for number, row in enumerate(rows_of(file)))
        for file, number, row in tracked(rows, split, None):
            try:
                read[split].append(_image(source, split, file, number, row, faults[split]))
            except Unusable as error:
                faults[split].add(error.kind, error.example, image=True)
    said: list[str] = []
    found = {thing.name for images in read.values() for image in images for thing in image.objects}
    unnamed = [fault for split in faults.values() for fault in split.found() if fault.kind == UNNAMED]
    refused = refusal(read, source.folder) or _of_classes(source, found, unnamed) or _as_corners(source.folder, read, said)
    return Labelled(source.names or sorted(found), read, faults, refused, said)


def _of_classes(source: _Source, found: set[str], unnamed: list[Fault]) -> str | None:
    """Why a data set is refused whose classes are not known."""
    if source.names is None and any(name.isdecimal() for name in found):
        return (
            f"{source.folder} has its classes as numbers and says their names nowhere; write them as a ClassLabel, or into the "
            "dataset_info of its README.md"
        )
    if source.names is not None and unnamed:
        count, known = sum(fault.count for fault in unnamed), ", ".join(source.names[:MOST])
        more = f", nor are {count - 1} more" if count > 1 else ""
        return f"{unnamed[0].examples[0]} is none of {known}{more}; correct the numbers (`leandetr data check` lists them)"
    return None if found else f"{source.folder} has no box in any image; name a folder with labelled images"


def _image(source: _Source, split: str, file: Path, number: int, row: dict[str, Any], faults: Faults) -> LabelledImage:
    """Raises Unusable where there is no image, or its boxes and classes are not as many."""
    place, columns = f"{file}, row {number}", source.columns
    path = _file(source, split, file, number, row)
    stored, upright = sizes_of(path)
    size = size_of(row)
    sized = min(size) > 0 and (same_proportions(size, stored) or same_proportions(size, upright))
    objects = []
    for entry in _entries(row if columns.holder is None else row.get(columns.holder), columns, place):
        box = _numbers(entry[columns.boxes])
        if box is None:
            faults.add("box is not four finite numbers", f"{place}: {entry[columns.boxes]!r:.60}")
            continue
        name = _class(entry[columns.classes], source.names)
        if name is None:
            faults.add(UNNAMED, f"{place}: class {entry[columns.classes]}")
            continue
        area = finite(entry.get("area"))
        area = area if area is not None and area > 0 else None
        objects.append(LabelledObject(name, box, crowd=is_crowd(entry), area=area))
    return LabelledImage(path, path.name, size if sized else upright, objects)


def _file(source: _Source, split: str, file: Path, number: int, row: dict[str, Any]) -> Path:
    """The image's file; bytes become one in the cache."""
    given, place = row.get(source.columns.image), f"{file}, row {number}"
    image = given if isinstance(given, dict) else {"path": given}
    content, name = image.get("bytes"), str(image.get("path") or "")
    if content is None:
        for path in (file.parent / name, source.folder / name):
            if os.path.isfile(path) and not leading_out([path], [source.folder]):
                return path
        raise Unusable("missing image", f"{place}: {name!r:.80}")
    try:
        with Image.open(BytesIO(content)) as opened:
            form = str(opened.format).lower()
    except Exception as error:  # Pillow's readers raise whatever the bytes lead them to
        raise Unusable("unreadable image", place) from error
    stem = Path(name).stem if Path(name).suffix.lower() in SUFFIXES else "image"
    target = source.images / split / f"{file.stem}-{number:06d}-{stem}.{'jpg' if form == 'jpeg' else form}"
    if not target.is_file():
        with writing(target) as temporary:
            temporary.write_bytes(content)
    return target


def _entries(held: Any, columns: Columns, place: str) -> list[dict[str, Any]]:
    """What is said of each box: `datasets` gives a dictionary of lists, or a list of dictionaries."""
    if held is None:
        return []
    if isinstance(held, list):
        if not all(isinstance(entry, dict) and {columns.boxes, columns.classes} <= entry.keys() for entry in held):
            raise Unusable("boxes without classes", place)
        return held
    if not isinstance(held, dict):
        raise Unusable("boxes without classes", place)
    boxes, classes = held.get(columns.boxes), held.get(columns.classes)
    if boxes is None and classes is None:
        return []
    if not (isinstance(boxes, list) and isinstance(classes, list) and len(boxes) == len(classes)):
        raise Unusable("boxes without classes", place)
    beside = {key: held[key] for key in ("area", "iscrowd") if isinstance(held.get(key), list)}
    return [
        {columns.boxes: box, columns.classes: of} | {key: values[i] for key, values in beside.items() if i < len(values)}
        for i, (box, of) in enumerate(zip(boxes, classes))
    ]


def _numbers(box: Any) -> tuple[float, float, float, float] | None:
    try:
        x, y, width, height = (float(value) for value in box)
    except (TypeError, ValueError, OverflowError):
        return None
    return (x, y, width, height) if all(map(math.isfinite, (x, y, width, height))) else None


def _class(value: Any, names: list[str] | None) -> str | None:
    """The name of a class, of a number without one where none have names; None where this one has none."""
    if names is None or value in names:
        return str(value) if isinstance(value, str | int | float) else None
    return names[int(value)] if is_whole(value) and 0 <= value < len(names) else None


def _as_corners(folder: Path, splits: dict[str, list[LabelledImage]], said: list[str]) -> str | None:
    """Turn boxes that are corners into widths and heights, and say so; why the set is refused where it may be either."""
    images = [image for found in splits.values() for image in found]
    boxes = np.array([thing.box for image in images for thing in image.objects]).reshape(-1, 4)
    sides = np.array([image.size[::-1] for image in images for _ in image.objects]).reshape(-1, 2)
    leaving = (boxes[:, :2] + boxes[:, 2:] > sides + EDGE).any(axis=1)
    fit = (boxes[:, 2:] > boxes[:, :2]) & (boxes[:, :2] >= -EDGE) & (boxes[:, 2:] <= sides + EDGE)
    if not leaving.any() or not fit.all():
        return None
    told = f"{leaving.sum()} of {len(boxes)} boxes leave their images as x, y, width, height"
    if leaving.mean() < CORNERS or len(boxes) < FEW:
        return f"{folder}: {told}, and all fit as corners; correct these boxes, or write all as x, y, width, height"
    said.append(f"{told}, and all fit as corners (left, upper, right, lower): they are read as corners")
    for split, found in splits.items():
        splits[split] = [replace(image, objects=[_from_corners(thing) for thing in image.objects]) for image in found]
    return None


def _from_corners(thing: LabelledObject) -> LabelledObject:
    left, top, right, bottom = thing.box
    return replace(thing, box=(left, top, right - left, bottom - top))
