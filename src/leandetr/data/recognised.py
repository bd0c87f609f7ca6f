"""VOC and YOLO data sets given as data: their boxes as COCO JSON in the user's cache, their images where they are.

The cache is `$XDG_CACHE_HOME/leandetr/data` (`~/.cache/leandetr/data`), one folder for every state of a data set: names, sizes
and times of all its files are its key, so that a changed data set is read again. Nothing is written into the data set.
"""

import hashlib
import os
from importlib.metadata import version
from pathlib import Path

from leandetr.data.convert import SPLITS, coco_of, places_of, read_labelled
from leandetr.files import write_json


def recognised_annotations(source: Path, split: str) -> Path:
    """The COCO JSON of one split ("train" or "val") of a Pascal VOC or YOLO folder, or of a YOLO YAML file; its file names are
    relative to the folder, to that of the file, or absolute for images that lie elsewhere.

    Raises UserError where the folder has another layout or is faulty (the readers say what), or the cache cannot be written.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "leandetr" / "data" / _state(source)
    files = {name: cache / f"instances_{name}.json" for name in SPLITS}
    if not all(file.is_file() for file in files.values()):
        labelled = read_labelled(source)
        folder = source if source.is_dir() else source.parent
        for name, file in files.items():
            images = getattr(labelled, name)
            write_json(file, coco_of(images, labelled.names, [_name(image.path, folder) for image in images]))
    return files[split]


def _name(image: Path, folder: Path) -> str:
    return (image.relative_to(folder) if image.is_relative_to(folder) else image.resolve()).as_posix()


def _state(source: Path) -> str:
    found = [f"{version('leandetr')} {source.resolve()}"]
    places = places_of(source)
    files = [str(place) for place in places if place.is_file()]
    files += [os.path.join(parent, name) for place in places for parent, _, names in os.walk(place) for name in names]
    for path in files:
        known = os.stat(path) if os.path.exists(path) else os.lstat(path)
        found.append(f"{path} {known.st_size} {known.st_mtime_ns}")
    return hashlib.sha256("\n".join(sorted(found)).encode(errors="surrogateescape")).hexdigest()[:32]
