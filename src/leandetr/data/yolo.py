"""YOLO folders: `data.yaml` with the classes' names, and a text file an image with a line `class cx cy w h` an object.

Centre and size of a box are relative to the image as it is seen, after its EXIF turn, which is how the trainers of such folders
load it. An image without a text file, or with an empty one, has no objects.

`supervision` reads such folders too, but takes any class number and boxes in pixels without a word, and keeps 32-bit corners.
"""

from pathlib import Path

import yaml

from leandetr.data.labelled import Labelled, LabelledImage, LabelledObject, image_files, image_sizes, read_text, tracked
from leandetr.errors import UserError

FOLDERS = {"train": ("images/train", "train/images"), "val": ("images/val", "val/images", "valid/images")}
TOLERANCE = 1e-3  # by which a relative number may exceed 1: rounding, not pixels
NOT_LABELS = {"classes.txt"}  # labelling tools put the names beside the labels


def is_yolo(folder: Path) -> bool:
    """Whether a folder is laid out as YOLO's are, with its `data.yaml`."""
    return (folder / "data.yaml").is_file() and _images(folder, "train") is not None


def read_yolo(folder: Path) -> Labelled:
    """The images of `images/{train,val}` with `labels/{train,val}` (or `{train,val,valid}/images` with `.../labels`).

    Only `names` is read from data.yaml, a list or a mapping from class numbers; its order is kept. Its paths are not used:
    they are often those of the machine it was written on.

    Raises:
        UserError: no names or unusable ones, no folder of a split's images or labels, no images, a label file without an image,
            a line that is not five numbers, a class number without a name, a box that is not relative or has no area.
    """
    names = _names(folder / "data.yaml")
    train, val = (_read_split(folder, split, names) for split in FOLDERS)
    return Labelled(list(names.values()), train, val)


def _names(file: Path) -> dict[int, str]:
    """Class number -> name, in the order of the numbers."""
    try:
        content = yaml.safe_load(read_text(file))
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{file} is not YAML ({reason}); correct it") from error
    given = content.get("names") if isinstance(content, dict) else None
    if isinstance(given, list):
        given = dict(enumerate(given))
    if not isinstance(given, dict) or not given:
        raise UserError(f"{file} has no 'names'; list the classes there, as in names: [cat, dog]")
    for number, name in given.items():
        if not _is_count(number):
            raise UserError(f"{file}: 'names' has the class number {number!r}; write whole numbers from 0")
        if not isinstance(name, str | int) or isinstance(name, bool) or not str(name).strip():  # YAML reads `no` as a bool
            raise UserError(f"{file}: the name of class {number} is read as {name!r}; write a text, in quotes")
    names = {number: str(given[number]).strip() for number in sorted(given)}
    if len(set(names.values())) < len(names):
        twice = next(name for name in names.values() if list(names.values()).count(name) > 1)
        raise UserError(f"{file} gives the name {twice!r} to two classes; each must have its own")
    return names


def _is_count(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= 0


def _images(folder: Path, split: str) -> Path | None:
    return next((folder / name for name in FOLDERS[split] if (folder / name).is_dir()), None)


def _read_split(folder: Path, split: str, names: dict[int, str]) -> list[LabelledImage]:
    images = _images(folder, split)
    files = image_files(images) if images is not None else []
    if not files:
        raise UserError(f"{folder} has no images in {' or '.join(FOLDERS[split])}; put those of the {split} split there")
    labels = folder / images.relative_to(folder).as_posix().replace("images", "labels")
    if not labels.is_dir():
        raise UserError(f"{folder} has no folder {labels.relative_to(folder)}/; put the label files of {images} there")
    stems = {file.relative_to(images).with_suffix("") for file in files}
    for label in sorted(labels.rglob("*.txt")):
        if label.name not in NOT_LABELS and label.relative_to(labels).with_suffix("") not in stems:
            raise UserError(f"{label} has no image in {images}; restore the image or remove the label file")
    read = []
    for file in tracked(files, split, len(files)):
        name = file.relative_to(images)
        _, size = image_sizes(file)
        read.append(LabelledImage(file, name.as_posix(), size, _objects((labels / name).with_suffix(".txt"), size, names)))
    return read


def _objects(file: Path, size: tuple[int, int], names: dict[int, str]) -> list[LabelledObject]:
    if not file.exists():
        return []
    lines = enumerate(read_text(file).splitlines(), start=1)
    return [_object(line.split(), f"{file}, line {number}", size, names) for number, line in lines if line.strip()]


def _object(fields: list[str], where: str, size: tuple[int, int], names: dict[int, str]) -> LabelledObject:
    try:
        number, cx, cy, w, h = (float(field) for field in fields)  # some tools write the class as 1.0 or 1e+00
    except ValueError as error:
        shown = " ".join(fields)
        raise UserError(f"{where}: {shown!r:.60} is not a box; write five numbers: class cx cy w h") from error
    if number not in names:
        known = f"{min(names)} to {max(names)}"
        raise UserError(
            f"{where}: class {fields[0]} is not one of data.yaml's names ({known}); correct the number or add the name"
        )
    if not (0 < w <= 1 + TOLERANCE and 0 < h <= 1 + TOLERANCE and -TOLERANCE <= min(cx, cy) <= max(cx, cy) <= 1 + TOLERANCE):
        raise UserError(
            f"{where}: {' '.join(fields[1:])} is not a box in parts of the image; divide pixels by its width and height"
        )
    height, width = size
    return LabelledObject(names[int(number)], ((cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height))
