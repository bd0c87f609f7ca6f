"""YOLO data sets: a YAML file with the classes' names, and a text file an image with a line `class cx cy w h` an object.

Centre and size of a box are relative to the image as it is seen, after its EXIF turn, which is how the trainers of such folders
load it. An image without a text file, or with an empty one, has no objects.

`supervision` reads such folders too, but takes any class number and boxes in pixels without a word, and keeps 32-bit corners.
"""

from pathlib import Path
from typing import Any

import yaml

from leandetr.data.labelled import Labelled, LabelledImage, LabelledObject, image_files, image_sizes, read_text, tracked
from leandetr.errors import UserError

FOLDERS = {"train": ("images/train", "train/images"), "val": ("images/val", "val/images", "valid/images")}
YAML = (".yaml", ".yml")
TOLERANCE = 1e-3  # by which a relative number may exceed 1: rounding, not pixels
NOT_LABELS = {"classes.txt"}  # labelling tools put the names beside the labels


def is_yolo(source: Path) -> bool:
    """Whether this is the YAML file of a YOLO data set, a folder with its `data.yaml`, or one that only lacks that."""
    if source.is_file():
        return source.suffix in YAML
    images = (source / name for name in ("images", *(usual for split in FOLDERS.values() for usual in split)))
    return (source / "data.yaml").is_file() or any(folder.is_dir() and _labels(folder).is_dir() for folder in images)


def read_yolo(source: Path) -> Labelled:
    """The images of a YAML file's `train` and `val` with their labels, which lie beside them in `labels` in place of `images`.

    `train` and `val` are relative to the YAML file's `path`, or to its own folder. Where they name no folder that is there (as
    they may be those of the machine it was written on), `images/{train,val}` or `{train,val,valid}/images` is taken. The order
    of `names`, a list or a mapping from class numbers, is kept.

    Args:
        source: the YAML file, or a folder with a `data.yaml`.

    Raises:
        UserError: no names or unusable ones, no folder of a split's images or labels, no images, a label file without an image,
            a line that is not five numbers, a class number without a name, a box that is not relative or has no area.
    """
    file, content = _content(source)
    names = _names(file, content)
    train, val = (_read_split(file, content, split, names) for split in FOLDERS)
    return Labelled(list(names.values()), train, val)


def places_of_yolo(source: Path) -> list[Path]:
    """The files and folders that `read_yolo` reads; raises what it raises of the YAML file and the images' folders."""
    file, content = _content(source)
    images = [_images(file, content, split) for split in FOLDERS]
    return [file, *images, *map(_labels, images)]


def _content(source: Path) -> tuple[Path, dict[str, Any]]:
    """The YAML file and what it says."""
    file = source if source.is_file() else source / "data.yaml"
    if not file.is_file():
        raise UserError(
            f"{source} is laid out like a YOLO folder but has no data.yaml; write one with the classes, as in "
            "names: [cat, dog], or name the YAML file itself"
        )
    try:
        content = yaml.safe_load(read_text(file))
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{file} is not YAML ({reason}); correct it") from error
    return file, content if isinstance(content, dict) else {}


def _names(file: Path, content: dict[str, Any]) -> dict[int, str]:
    """Class number -> name, in the order of the numbers."""
    given = content.get("names")
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


def _images(file: Path, content: dict[str, Any], split: str) -> Path:
    """The folder of a split's images."""
    base, root, named = file.parent, content.get("path"), content.get(split)
    roots = [base / root, base] if isinstance(root, str) else [base]
    folders = [root / named for root in roots] if isinstance(named, str) and named else []
    found = next((folder for folder in (*folders, *(base / usual for usual in FOLDERS[split])) if folder.is_dir()), None)
    if found is None:
        usual = " or ".join(FOLDERS[split])
        raise UserError(f"{file} names no folder of images as {split!r}, and there is no {usual} beside it; correct the name")
    return found


def _labels(images: Path) -> Path:
    """The same path with its last `images` become `labels`."""
    place = max((index for index, part in enumerate(images.parts) if part == "images"), default=None)
    if place is None:
        raise UserError(f"{images} is not below a folder `images`, beside which labels lie in `labels`; move both there")
    return Path(*images.parts[:place], "labels", *images.parts[place + 1 :])


def _read_split(file: Path, content: dict[str, Any], split: str, names: dict[int, str]) -> list[LabelledImage]:
    images = _images(file, content, split)
    files, labels = image_files(images), _labels(images)
    if not files:
        raise UserError(f"{images} has no images; put those of the {split} split there")
    if not labels.is_dir():
        raise UserError(f"{labels} does not exist; put the label files of {images} there")
    stems = {file.relative_to(images).with_suffix("") for file in files}
    for label in sorted(labels.rglob("*.txt")):
        if label.name not in NOT_LABELS and label.relative_to(labels).with_suffix("") not in stems:
            raise UserError(f"{label} has no image in {images}; restore the image or remove the label file")
    read = []
    for image in tracked(files, split, len(files)):
        name = image.relative_to(images)
        _, size = image_sizes(image)
        read.append(LabelledImage(image, name.as_posix(), size, _objects((labels / name).with_suffix(".txt"), size, names)))
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
