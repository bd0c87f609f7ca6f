"""YOLO data sets: the classes' names, and a text file an image with a line `class cx cy w h` an object.

Centre and size of a box are relative to the image as it is seen, after its EXIF turn, which is how the trainers of such folders
load it. An image without a text file, or with an empty one, has no objects. A line may also hold a confidence after the box,
key points after the box (as the YAML's `kpt_shape` says), or in its place a polygon `class x y x y x y ...`, around which the
box is drawn; the four corners of an oriented box are such a polygon.

`supervision` reads such folders too, but takes any class number and boxes in pixels without a word, and keeps 32-bit corners.
"""

from pathlib import Path
from typing import Any

from leandetr.data.faults import Faults, Unusable
from leandetr.data.labelled import (
    Labelled,
    LabelledImage,
    LabelledSet,
    image_files,
    is_hidden,
    read_text,
    refusal,
    sizes_of,
    tracked,
)
from leandetr.data.split_names import ALL, child, split_folders
from leandetr.data.yolo_labels import Line, objects_in, read_lines
from leandetr.data.yolo_places import USUAL, Part, label_of, labels_of, parts_of
from leandetr.errors import UserError
from leandetr.files import parse_yaml

YAML = (".yaml", ".yml")
YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
DARKNET = "obj.data"  # of CVAT's "YOLO 1.1" and of darknet: lines `train = train.txt`
CLASSES = ("classes.txt", "obj.names", "classes.names", "labels/classes.txt")  # a name a line
ROBOFLOW = "_darknet.labels"  # the same in every split's folder
NOT_LABELS = {"classes.txt", "train.txt", "val.txt", "valid.txt", "test.txt"}  # labelling tools put these beside the labels


def is_yolo(source: Path) -> bool:
    """Whether this is the YAML file of a YOLO data set, a folder with its `data.yaml`, or one that only lacks that."""
    if source.is_file():
        return source.suffix in YAML
    images = (source / name for name in ("images", *(usual for split in USUAL.values() for usual in split)))
    return (source / "data.yaml").is_file() or any(folder.is_dir() and _has_labels(folder) for folder in images)


def open_yolo(source: Path) -> LabelledSet | None:
    """A YAML file and what it names, a folder with such a file, with darknet's `obj.data`, or with a list of the classes.

    Raises:
        UserError: no names or unusable ones, or the file names images that are not there (`yolo_places.py`).
    """
    file = names_file(source)
    if file is None:
        if is_yolo(source):
            raise UserError(
                f"{source} is laid out like a YOLO folder but has no data.yaml; write one with the classes, as in "
                "names: [cat, dog], or name the YAML file itself"
            )
        return None
    content = _content(file)
    said: list[str] = []
    names = _names(file, content)
    parts = parts_of(file, content, said) or _unnamed(source if source.is_dir() else source.parent)
    if not parts:
        raise UserError(
            f"{file} names no images, and there are none in {USUAL['train'][0]}, images or beside it; add 'train' and 'val'"
        )
    for split, part in parts.items():
        _judge(file, split, part)
    said += _shared(parts)
    places = list(dict.fromkeys([file, *(place for part in parts.values() for place in part.places())]))
    return LabelledSet(tuple(parts), places, said, lambda: _read(names, parts, content.get("kpt_shape"), file))


def names_file(source: Path) -> Path | None:
    """The file with the classes' names."""
    if source.is_file():
        return source if source.suffix in YAML else None
    if not source.is_dir():
        return None
    found = next((source / name for name in YAML_NAMES if (source / name).is_file()), None)
    if found is None:
        others = [
            path for path in sorted(source.iterdir()) if path.suffix in YAML and not is_hidden(path) and _says_names(path)
        ]
        if len(others) > 1:
            raise UserError(
                f"{source} has several YAML files of a YOLO data set ({', '.join(p.name for p in others)}); name one"
            )
        found = others[0] if others else None
    if found is None:
        found = next((source / name for name in (DARKNET, *CLASSES) if (source / name).is_file()), None)
    return found or _roboflow_names(source)


def _roboflow_names(source: Path) -> Path | None:
    """The class names that Roboflow's darknet export has beside the images of each split; they must be the same ones."""
    found = [file for folder in split_folders(source).values() if (file := folder / ROBOFLOW).is_file()]
    if len({tuple(_lines(file)) for file in found}) > 1:
        raise UserError(f"{found[0]} and those of the other splits list other classes; write the same, in one order")
    return found[0] if found else None


def _says_names(file: Path) -> bool:
    try:
        content = parse_yaml(file.read_bytes())
    except (OSError, ValueError):
        return False
    keys = {str(key).lower() for key in content} if isinstance(content, dict) else set()
    return "names" in keys and not keys.isdisjoint({"train", "val", "nc", "path"})


def _content(file: Path) -> dict[str, Any]:
    """What the file says, in the form of a YAML file."""
    text = read_text(file)
    if file.name == DARKNET:
        pairs = (line.partition("=") for line in text.splitlines())
        content: dict[str, Any] = {key.strip(): value.strip() for key, equals, value in pairs if equals}
        named = file.parent / Path(content.get("names", "obj.names")).name
        return {key: content[key] for key in ("train", "valid", "test") if key in content} | {"names": _lines(named)}
    if file.suffix not in YAML:
        return {"names": _lines(file)}
    try:
        content = parse_yaml(text)
    except ValueError as error:
        raise UserError(f"{file} is not YAML ({error}); correct it") from error
    return content if isinstance(content, dict) else {}


def _lines(file: Path) -> list[str]:
    return [line.strip() for line in read_text(file).splitlines() if line.strip()]


def _unnamed(folder: Path) -> dict[str, Part]:
    """The images where no file says where they are: a folder a split, else all."""
    images = child(folder, "images", "obj_train_data")
    found = (split_folders(images) if images else {}) or split_folders(folder)
    if not found:
        found = {ALL: images or folder}
    parts = {split: Part(images=image_files(place), folders=[place]) for split, place in found.items()}
    return {split: part for split, part in parts.items() if part.images}


def _names(file: Path, content: dict[str, Any]) -> dict[int, str]:
    """Class number -> name, in the order of the numbers."""
    given = content.get("names", content.get("Names"))
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


def _has_labels(images: Path) -> bool:
    """Whether there is a folder of text files, or none at all, for a folder of images; XML files there are VOC's."""
    return any(next(folder.rglob("*.xml"), None) is None for folder in labels_of(images))


def _judge(file: Path, split: str, part: Part) -> None:
    """Refuse a split without images, or of whose images none has a label file or a folder for one."""
    where = ", ".join(map(str, part.folders or part.lists)) or str(file)
    if not part.images:
        raise UserError(f"{where} has no images; put those of the {split} split there")
    folders = part.folders or list(dict.fromkeys(image.parent for image in part.images))
    if not any(labels_of(folder) for folder in folders) and not any(label_of(image).is_file() for image in part.images):
        here = folders[0]
        usual = [part if part != "images" else "labels" for part in here.parts]
        wanted = f"{Path(*usual)} does not exist" if "images" in here.parts else f"{here} has no label files"
        raise UserError(f"{wanted}; put the label files of {here} there")


def _shared(parts: dict[str, Part]) -> list[str]:
    """What to say where an image is in two splits."""
    said, items = [], list(parts.items())
    for number, (first, part) in enumerate(items):
        for second, other in items[number + 1 :]:
            both = {image.resolve() for image in part.images} & {image.resolve() for image in other.images}
            if both:
                said.append(f"{len(both)} images are both in {first} and in {second}, the first is {min(both)}")
    return said


def _read(names: dict[int, str], parts: dict[str, Part], points: Any, file: Path) -> Labelled:
    """The images and their labels; the order of the classes' numbers is kept.

    Images that cannot be read are left out, with their label files or without: no image becomes one without objects because
    its labels are lost. A class number without a name makes every name doubtful, and nothing of the set is to be trusted.

    points: `kpt_shape` of the YAML file, (points, numbers a point).
    """
    faults, unnamed = {split: Faults() for split in parts}, list[Line]()
    read: dict[str, list[LabelledImage]] = {}
    key_points = points[0] * points[1] if isinstance(points, list) and len(points) == 2 and all(map(_is_count, points)) else 0
    for split, part in parts.items():
        for label in _without_image(part):
            faults[split].add("label file without an image", str(label))
        base = part.folders[0] if len(part.folders) == 1 and not part.lists else _common(part.images)
        read[split] = []
        for image in tracked(part.images, split, len(part.images)):
            name = image.relative_to(base).as_posix() if image.is_relative_to(base) else image.name
            try:
                _, size = sizes_of(image)
                lines = read_lines(label_of(image), faults[split])
            except Unusable as error:
                faults[split].add(error.kind, error.example, image=True)
                continue
            strange = [line for line in lines if line.values[0] not in names]
            for line in strange:
                faults[split].add("class number without a name", str(line))
            unnamed += strange
            objects = objects_in([line for line in lines if line.values[0] in names], size, names, key_points, faults[split])
            read[split].append(LabelledImage(image, name, size, objects))
    refused = refusal(read, file)
    if unnamed:
        first, known = unnamed[0], f"{min(names)} to {max(names)}"
        more = f", nor is that of {len(unnamed) - 1} more lines" if len(unnamed) > 1 else ""
        refused = (
            f"{first.place}: class {first.values[0]:g} is not one of {file.name}'s names ({known}){more}; correct the "
            "numbers or add the names (`leandetr data check` lists them)"
        )
    return Labelled(list(names.values()), read, faults, refused)


def _common(images: list[Path]) -> Path:
    """The folder that holds all of the images."""
    found = images[0].parent
    while not all(image.is_relative_to(found) for image in images):
        found = found.parent
    return found


def _without_image(part: Part) -> list[Path]:
    """The label files below a split's folders that are of no image; beside images only what reads like labels is one."""
    stems = {image.with_suffix("") for image in part.images}
    found = []
    for images in part.folders:
        apart = labels_of(images)
        for folder in apart or [images]:
            for label in sorted(folder.rglob("*.txt")):
                stray = images / label.relative_to(folder).with_suffix("") not in stems
                if stray and label.name not in NOT_LABELS and not is_hidden(label) and (apart or _reads_like_labels(label)):
                    found.append(label)
    return found


def _reads_like_labels(file: Path) -> bool:
    line = next(iter(_lines(file)), "").split()
    try:
        return len(list(map(float, line))) >= 5
    except ValueError:
        return False
