"""Every fault of a data set in COCO's layout, not just the first one, and what the set holds."""

import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from leandetr.data.annotations import RELATIVE, SECTIONS, Split, left_out, place, size_of
from leandetr.data.entries import box_of, is_whole, whole
from leandetr.data.faults import Fault, Faults
from leandetr.data.file_names import difference
from leandetr.data.images import bits_of, decode, fault_of, swaps_sides
from leandetr.errors import UserError
from leandetr.files import read_json
from leandetr.terminal import plain_table

FIELDS = {
    "images": ("id", "file_name"),
    "annotations": ("image_id", "category_id"),
    "categories": ("id", "name"),
}
MOST = 8  # classes that a summary names
DARK = 16  # of 255: 12 bits that are read as 16


@dataclass(frozen=True)
class Summary:
    """What the sound entries of a split hold.

    images: their number; empty: that of those without a box. boxes: class name -> number of boxes, the most frequent first.
    median_box: (width, height) in pixels; None without boxes.
    """

    images: int
    empty: int
    boxes: dict[str, int]
    median_box: tuple[float, float] | None

    def __str__(self) -> str:
        said = f"{self.images} images, {self.empty} without boxes; {sum(self.boxes.values())} boxes"
        if self.median_box is None:
            return said
        width, height = self.median_box
        shown = ", ".join(f"{name} {count}" for name, count in list(self.boxes.items())[:MOST])
        more = f" and {len(self.boxes) - MOST} more classes" if len(self.boxes) > MOST else ""
        return f"{said}, median {width:.0f} x {height:.0f} pixels\n  {shown}{more}"


def summarise(split: Split) -> Summary:
    """What a split holds; malformed entries and boxes that are none are left out. Raises as `check`."""
    coco = _read(split)
    images, annotations, categories = (_sound(coco, section) for section in SECTIONS)
    names = {category["id"]: category["name"] for category in categories}
    known = {image["id"] for image in images}
    listed = [entry for entry in annotations if entry["image_id"] in known and entry["category_id"] in names]
    corners = np.array([box_of(entry) for entry in listed]).reshape(-1, 4)
    good = np.isfinite(corners).all(axis=1) & (corners[:, 2:] > 0).all(axis=1)
    boxes = [entry for entry, is_good in zip(listed, good) if is_good]
    counts = Counter(dict.fromkeys(names.values(), 0))
    counts.update(names[entry["category_id"]] for entry in boxes)
    return Summary(
        images=len(images),
        empty=len(known - {entry["image_id"] for entry in boxes}),
        boxes=dict(counts.most_common()),
        median_box=tuple(np.median(corners[good, 2:], axis=0).tolist()) if boxes else None,
    )


def check(split: Split, examples: int = 3) -> list[Fault]:
    """All faults of a split by kind, in the order of the checks; an empty list where there are none.

    Every image is decoded, on as many threads as there are processors; a progress bar goes to stderr where that is a terminal.

    Args:
        split: the annotations may be ones that `CocoDataset` refuses.
        examples: how many occurrences of each kind to name.

    Raises:
        UserError: the annotations cannot be read or are no JSON dictionary: there is nothing to check.
    """
    coco = _read(split)
    faults = Faults(examples)
    for kind, example in _occurrences(coco, split):
        faults.add(kind, example)
    for fault in _image_faults(_sound(coco, "images"), split):
        faults.add(*fault)
    return left_out(coco).skipped + faults.found()


def notes(split: Split) -> list[str]:
    """What is no fault but good to know: where images are read that are not where the JSON says, what else was made of it."""
    coco = _read(split)
    images, made = _sound(coco, "images"), left_out(coco)
    names = [image["file_name"] for image in images]
    unsized = sum(0 in size_of(image) for image in images)
    said = [
        *made.said,
        made.refused or "",
        difference(names, split.located(names)),
        f"{unsized} images have no size in the JSON; the files' own are taken" if unsized else "",
    ]
    return list(filter(None, said))


def image_names(split: Split) -> list[str]:
    """The names of the sound entries of images, under which they are. Raises as `check`."""
    return split.located([image["file_name"] for image in _sound(_read(split), "images")])


def _read(split: Split) -> dict[str, Any]:
    coco = read_json(split.annotations)
    if not isinstance(coco, dict):
        raise UserError(
            f"{split.annotations} is not COCO: it holds no dictionary; write it in COCO's format or name another file"
        )
    return coco


def faults_table(faults: list[Fault]) -> Table:
    """The faults with their counts and examples, for the terminal."""
    table = plain_table("fault", "count", "for example", numbers=["count"])
    for fault in faults:
        table.add_row(str(fault), str(fault.count), "\n".join(fault.examples))
    return table


def _occurrences(coco: dict[str, Any], split: Split) -> Iterator[tuple[str, str]]:
    """(kind, example) of every fault of the JSON."""
    sound: dict[str, list[dict[str, Any]]] = {}
    for section in SECTIONS:
        entries = coco.get(section)
        if not isinstance(entries, list):
            yield "missing list", f"{section!r} is {'absent' if entries is None else 'no list'}"
            entries = []
        elif not entries and section != "annotations":
            yield "empty list", f"{section!r}"
        judged = [(entry, _malformed(entry, FIELDS[section])) for entry in entries]
        yield from (("malformed entry", f"{section}[{number}]: {why}") for number, (_, why) in enumerate(judged) if why)
        sound[section] = [entry for entry, why in judged if not why]

    images, annotations, categories = (sound[section] for section in SECTIONS)
    numbered = [annotation for annotation in annotations if "id" in annotation]
    for kind, entries, key in (
        ("duplicate image id", images, "id"),
        ("duplicate file name", images, "file_name"),
        ("duplicate annotation id", numbered, "id"),
        ("duplicate category id", categories, "id"),
        ("duplicate category name", categories, "name"),
    ):
        counts = Counter(repr(entry[key]) for entry in entries)
        yield from ((kind, f"{value} occurs {count} times") for value, count in counts.items() if count > 1)
    yield from _box_faults(images, annotations, categories)
    yield from _repeated(annotations)


def _sound(coco: dict[str, Any], section: str) -> list[dict[str, Any]]:
    entries = coco.get(section)
    return [entry for entry in entries if not _malformed(entry, FIELDS[section])] if isinstance(entries, list) else []


def _malformed(entry: Any, keys: tuple[str, ...]) -> str | None:
    if not isinstance(entry, dict):
        return f"{entry!r:.40} is no dictionary"
    for key in keys:
        if key not in entry:
            return f"lacks {key!r}"
        if not _fits(key, entry[key]):
            return f"{key!r} is {entry[key]!r:.40}"
    for side in ("width", "height") if "file_name" in keys else ():
        if entry.get(side) is not None and whole(entry[side]) is None:
            return f"{side!r} is {entry[side]!r:.40}"
    return None


def _fits(key: str, value: Any) -> bool:
    """Whether a value is of its field's kind: file names are text, class names text or a number, all others whole numbers."""
    if key == "name":
        return isinstance(value, str | int) and not isinstance(value, bool)
    return isinstance(value, str) if key == "file_name" else is_whole(value)


def _box_faults(images: list[dict], annotations: list[dict], categories: list[dict]) -> Iterator[tuple[str, str]]:
    image_of = {image["id"]: image for image in images}
    category_ids = {category["id"] for category in categories}
    for annotation in annotations:
        name = f"annotation {annotation['id']}" if "id" in annotation else f"an annotation of image {annotation['image_id']}"
        if annotation["category_id"] not in category_ids:
            yield "unknown category", f"{name}: category {annotation['category_id']}"
        image = image_of.get(annotation["image_id"])
        if image is None:
            yield "unknown image", f"{name}: image {annotation['image_id']}"
        box = np.array([box_of(annotation)])
        shown = f"{name}: {annotation.get('bbox')!r:.60}"
        if not np.isfinite(box).all():
            yield "box is not four finite numbers", shown
        elif (box[:, 2:] <= 0).any():
            yield "empty box", shown
        elif image is not None:
            height, width = (side or np.inf for side in size_of(image))
            inside, overhanging = place(box, np.array([[height, width]]))
            if (box[:, :2] + box[:, 2:] <= 1 + RELATIVE).all() and (box % 1).any():
                yield "box in parts of the image, not pixels", shown
            elif not inside or overhanging:
                where = "outside of" if not inside else "reaching out of"
                yield f"box {where} its image", f"{shown} in {width} x {height}"


def _repeated(annotations: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Every copy of an annotation beyond the first."""
    seen = set()
    for annotation in annotations:
        box = box_of(annotation)
        key = (annotation["image_id"], annotation["category_id"], *(round(side, 2) for side in box))
        if key in seen:
            yield "repeated annotation", f"image {key[0]}, category {key[1]}: {box}"
        elif np.isfinite(box).all():
            seen.add(key)


def _image_faults(images: list[dict[str, Any]], split: Split) -> Iterator[tuple[str, str, bool]]:
    """(kind, example, whether the image is left out) of every fault of an image file."""
    paths = [split.images / name for name in split.located([image["file_name"] for image in images])]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        console = Console(stderr=True)
        found = pool.map(_image_fault, images, paths)
        checked = track(found, "checking images", len(images), console=console, disable=not console.is_terminal, transient=True)
        yield from (fault for fault in checked if fault is not None)


def _image_fault(image: dict[str, Any], path: Path) -> tuple[str, str, bool] | None:
    if not os.path.isfile(path):
        return "missing image", str(path), False
    if fault := fault_of(path, size_of(image)):
        return *fault, True
    try:
        pixels, orientation = decode(path)
    except UserError as error:
        return "damaged image", str(error).partition(";")[0], False  # which head and end do not show
    height, width = size_of(image)
    sizes = [pixels.size, pixels.size[::-1]] if swaps_sides(orientation) else [pixels.size]
    if min(height, width) > 0 and (width, height) not in sizes:
        seen = f"{path}: {width} x {height} in the JSON, {pixels.width} x {pixels.height} in the file"
        return "size differs from the file", seen, False
    extrema: Any = pixels.getextrema()  # a pair a channel, of RGB
    if bits_of(path) > 12 and max(high for _, high in extrema) <= DARK:
        return "nearly black image", f"{path}: of its 16 bits few are used; write it with 8 bits, or say 12 in the file", False
    return None
