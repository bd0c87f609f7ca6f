"""VOC and YOLO folders given as data: their boxes as COCO JSON in the user's cache, their images where they are.

The cache is `$XDG_CACHE_HOME/leandetr/data` (`~/.cache/leandetr/data`), one folder for every state of a data set: names, sizes
and times of all its files are its key, so that a changed data set is read again. Nothing is written into the data set.
"""

import hashlib
import os
from importlib.metadata import version
from pathlib import Path

from leandetr.data.convert import SPLITS, coco_of, read_labelled
from leandetr.files import write_json


def recognised_annotations(folder: Path, split: str) -> Path:
    """The COCO JSON of one split ("train" or "val") of a Pascal VOC or YOLO folder; its file names are relative to `folder`.

    Raises UserError where the folder has another layout or is faulty (the readers say what), or the cache cannot be written.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "leandetr" / "data" / _state(folder)
    files = {name: cache / f"instances_{name}.json" for name in SPLITS}
    if not all(file.is_file() for file in files.values()):
        labelled = read_labelled(folder)
        for name, file in files.items():
            images = getattr(labelled, name)
            write_json(file, coco_of(images, labelled.names, [image.path.relative_to(folder).as_posix() for image in images]))
    return files[split]


def _state(folder: Path) -> str:
    found = [f"{version('leandetr')} {folder.resolve()}"]
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            known = os.stat(path) if os.path.exists(path) else os.lstat(path)
            found.append(f"{path} {known.st_size} {known.st_mtime_ns}")
    return hashlib.sha256("\n".join(sorted(found)).encode(errors="surrogateescape")).hexdigest()[:32]
