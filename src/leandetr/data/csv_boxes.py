"""Boxes in CSV files, a row a box: with a line of titles as TensorFlow's tutorials and Roboflow write them, or without as
RetinaNet's trainer reads them, `path,left,upper,right,lower,class`, where a row of the path alone is an image without objects.
"""

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from leandetr.data.faults import Faults, Unusable
from leandetr.data.labelled import (
    Labelled,
    LabelledImage,
    LabelledObject,
    LabelledSet,
    image_files,
    is_hidden,
    read_text,
    refusal,
    sizes_of,
    tracked,
)
from leandetr.data.split_names import ALL, SPLITS, child, split_folders, split_named
from leandetr.errors import UserError

TITLES = (
    ("filename", "file_name", "image", "image_path", "path"),
    ("xmin", "x1", "x_min", "left"),
    ("ymin", "y1", "y_min", "top"),
    ("xmax", "x2", "x_max", "right"),
    ("ymax", "y2", "y_max", "bottom"),
    ("class", "label", "class_name", "name"),
)
UNDIVIDED = ("_annotations", "annotations", "labels")  # names of a file that is of no split


@dataclass(frozen=True)
class Row:
    """A row: its image, its numbers as text, its class, its place."""

    image: str
    corners: list[str]
    name: str
    place: str


def open_csv(folder: Path) -> LabelledSet | None:
    """A CSV file a split, or one for all, in the folder, in `annotations` or in the splits' own folders."""
    files = _files(folder) if folder.is_dir() else {}
    if not files:
        return None
    images = {split: _images(folder, split, file) for split, file in files.items()}
    faults = {split: Faults() for split in files}
    rows = {split: _by_image(file, images[split], faults[split]) for split, file in files.items()}
    said = []
    for split, found in images.items():
        lost = [path for path in dict.fromkeys(found.values()) if path not in rows[split]]
        if lost:
            said.append(f"{len(lost)} images without a row in {files[split].name} are left out, the first is {lost[0]}")
    places = [*files.values(), *dict.fromkeys(path.parent for found in images.values() for path in found.values())]
    return LabelledSet(tuple(files), places, said, lambda: _read(folder, rows, faults))


def _files(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for split, place in split_folders(folder).items():
        for file in _csv_files(place).values():
            found.setdefault(split, file)
    for place in filter(None, (child(folder, "annotations"), folder)):
        for named, file in _csv_files(place).items():
            found.setdefault(named, file)
    if len(found) > 1:
        found.pop(ALL, None)
    return {split: found[split] for split in (*SPLITS, ALL) if split in found}


def _csv_files(folder: Path) -> dict[str, Path]:
    """The CSV files in a folder that hold boxes, by the split that their names say. Raises UserError where two say the same."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.csv")):
        split = split_named(path.stem) or (ALL if path.stem.lower() in UNDIVIDED else None)
        if split is not None and not is_hidden(path) and next(_rows(path), None) is not None:
            if split in found:
                raise UserError(f"{folder} has {found[split].name} and {path.name} for {split}; keep one of them there")
            found[split] = path
    return found


def _cells(file: Path) -> Iterator[list[str]]:
    try:
        yield from csv.reader(read_text(file).splitlines())
    except csv.Error as error:  # a cell of more than 131072 characters
        raise UserError(f"{file} cannot be read as CSV ({error}); correct it") from error


def _rows(file: Path) -> Iterator[Row]:
    """The rows of a file, none where it holds no boxes; raises UserError where it is not UTF-8, or no CSV."""
    lines = _cells(file)
    first = next(lines, [])
    titles = [title.strip().lower() for title in first]
    columns = [next((titles.index(title) for title in names if title in titles), None) for names in TITLES]
    start = 2
    if any(column is None for column in columns):
        if not (len(first) == len(TITLES) and (_are_numbers(first[1:5]) or not any(first[1:]))):
            return
        columns, start = list(range(len(TITLES))), 1
        lines = _cells(file)
    for number, cells in enumerate(lines, start=start):
        if cells:
            texts = [cells[column].strip() if column is not None and column < len(cells) else "" for column in columns]
            yield Row(texts[0], texts[1:5], texts[5], f"{file}, line {number}")


def _are_numbers(texts: list[str]) -> bool:
    try:
        return all(math.isfinite(float(text)) for text in texts)
    except ValueError:
        return False


def _images(folder: Path, split: str, file: Path) -> dict[str, Path]:
    """Name -> file, under its bare name and that below the folder."""
    images = child(folder, "images", "jpegimages", "imgs")
    own = split_folders(folder).get(split), split_folders(images).get(split) if images else None
    place = next((place for place in (*own, images) if place is not None and image_files(place)), file.parent)
    paths = image_files(place)
    bare = {path.name: path for path in paths}
    return bare | {path.relative_to(place).as_posix(): path for path in paths}


def _by_image(file: Path, images: dict[str, Path], faults: Faults) -> dict[Path, list[Row]]:
    found: dict[Path, list[Row]] = {}
    for row in _rows(file):
        name = row.image.replace("\\", "/")
        path = images.get(name) or images.get(name.rpartition("/")[2])
        if path is None:
            faults.add("row without an image", f"{row.place}: {row.image}")
        else:
            found.setdefault(path, []).append(row)
    return found


def _read(folder: Path, rows: dict[str, dict[Path, list[Row]]], faults: dict[str, Faults]) -> Labelled:
    """The images and their boxes; classes in alphabetical order. Coordinates are pixels, edges measured from 0."""
    read: dict[str, list[LabelledImage]] = {split: [] for split in rows}
    for split, images in rows.items():
        for path, found in tracked(images.items(), split, len(images)):
            try:
                _, size = sizes_of(path)
            except Unusable as error:
                faults[split].add(error.kind, error.example, image=True)
                continue
            objects = [thing for row in found if (thing := _object(row, faults[split])) is not None]
            read[split].append(LabelledImage(path, path.name, size, objects))
    names = sorted({thing.name for images in read.values() for image in images for thing in image.objects})
    nothing = None if names else f"{folder} has no box in any listed image; name a folder with labelled images"
    return Labelled(names, read, faults, refusal(read, folder) or nothing)


def _object(row: Row, faults: Faults) -> LabelledObject | None:
    if not any((*row.corners, row.name)):
        return None  # an image without objects
    shown = f"{row.place}: {', '.join((*row.corners, row.name))}"
    if not _are_numbers(row.corners):
        faults.add("box is not four finite numbers", shown)
        return None
    left, top, right, bottom = map(float, row.corners)
    if not (right > left and bottom > top):
        faults.add("empty box", shown)
    elif not row.name:
        faults.add("box without a class", shown)
    else:
        return LabelledObject(row.name, (left, top, right - left, bottom - top))
    return None
