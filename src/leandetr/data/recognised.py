"""Data sets of other formats than COCO's as data: their boxes as COCO JSON in the user's cache, their images where they are.

The cache is `$XDG_CACHE_HOME/leandetr/data` (`~/.cache/leandetr/data`), one folder for every state of a data set: names, sizes
and times of all its files are its key, so that a changed data set is read again. Nothing is written into the data set.
"""

import hashlib
import os
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from leandetr.data.coco_places import ROBOFLOW, unused_roots
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


def cache_folder(state: str) -> Path:
    """The folder of one state of something in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "leandetr" / "data" / state


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
        roots = unused_roots(files)
        for name, file in files.items():
            coco = read_json(file)
            dropped = [entry["name"] for entry in coco["categories"] if entry.get("id") in roots[name]]
            said = [f"the category {one!r} has no box and stands above the others; it is left out" for one in dropped]
            coco["categories"] = [entry for entry in coco["categories"] if entry.get("id") not in roots[name]]
            write_json(kept[name], coco | {"leandetr": {"said": said}})
    return kept[split]


def state_of_places(source: Path, places: Iterable[Path]) -> str:
    """A digest of the names, sizes and times of all files in some places, and of who reads them."""
    found, places = [f"{version('leandetr')} {source.resolve()}"], list(places)
    files = [str(place) for place in places if place.is_file()]
    files += [os.path.join(parent, name) for place in places for parent, _, names in os.walk(place) for name in names]
    for path in files:
        known = os.stat(path) if os.path.exists(path) else os.lstat(path)
        found.append(f"{path} {known.st_size} {known.st_mtime_ns}")
    return hashlib.sha256("\n".join(sorted(found)).encode(errors="surrogateescape")).hexdigest()[:32]


def _name(image: Path, folder: Path) -> str:
    return (image.relative_to(folder) if image.is_relative_to(folder) else image.resolve()).as_posix()
