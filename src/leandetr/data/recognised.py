"""Data sets of other formats than COCO's as data: their boxes as COCO JSON in the user's cache (`cache.py`), their images where
they are. Nothing is written into the data set.
"""

from pathlib import Path

from leandetr.data.cache import cache_folder, state_of_places
from leandetr.data.coco_places import ROBOFLOW, lists_categories, unused_roots
from leandetr.data.convert import coco_of
from leandetr.data.labelled import LabelledSet
from leandetr.data.layouts import Recognised
from leandetr.files import read_json, write_json


def recognised_annotations(found: Recognised, split: str) -> Path:
    """The COCO JSON of one of the splits that a place has; file names of VOC and YOLO sets are relative to the folder, to
    that of the YAML file, or absolute for images that lie elsewhere.

    Raises UserError where the place is faulty (the readers say what), or the cache cannot be written.
    """
    if isinstance(found.content, LabelledSet):
        return _labelled_annotations(found.place, found.content, split)
    if any(file.name == ROBOFLOW for file in found.content.values()):
        return _without_roots(found.place, dict(found.content), split)
    return found.content[split]


def _labelled_annotations(source: Path, content: LabelledSet, split: str) -> Path:
    cache = cache_folder(state_of_places(source, content.places))
    files = {name: cache / f"instances_{name}.json" for name in content.splits}
    if not all(file.is_file() for file in files.values()):
        labelled = content.read()
        folder = source if source.is_dir() else source.parent
        for name, file in files.items():
            names = [_name(image.path, folder) for image in labelled.splits[name]]
            write_json(file, coco_of(labelled, name, names))
    return files[split]


def _without_roots(source: Path, files: dict[str, Path], split: str) -> Path:
    """The JSON without the categories that only stand above the others."""
    cache = cache_folder(state_of_places(source, files.values()))
    kept = {name: cache / f"instances_{name}.json" for name in files}
    if not all(file.is_file() for file in kept.values()):
        contents = {name: read_json(file) for name, file in files.items()}
        if not all(map(lists_categories, contents.values())):
            return files[split]  # whose reader says what is wrong with it
        roots = unused_roots(contents)
        for name, coco in contents.items():
            dropped = [entry["name"] for entry in coco["categories"] if entry["id"] in roots[name]]
            said = [f"the category {one!r} has no box and stands above the others; it is left out" for one in dropped]
            coco["categories"] = [entry for entry in coco["categories"] if entry["id"] not in roots[name]]
            write_json(kept[name], coco | {"leandetr": {"said": said}})
    return kept[split]


def _name(image: Path, folder: Path) -> str:
    return (image.relative_to(folder) if image.is_relative_to(folder) else image.resolve()).as_posix()
