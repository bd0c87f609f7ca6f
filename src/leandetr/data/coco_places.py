"""Where the JSON files and the images of a folder in COCO's format lie, as tools write such folders.

The format's own tree is `annotations/instances_{train,val}2017.json` with `{train,val}2017/`; Roboflow writes
`{train,valid,test}/_annotations.coco.json` beside the images, CVAT `annotations/instances_Train.json` or
`instances_default.json` with `images/`, Label Studio `result.json` with `images/`, FiftyOne `labels.json` with `data/`, and
people `train.json`.
"""

import os
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path
from typing import Any

from leandetr.data.entries import is_whole
from leandetr.data.labelled import SUFFIXES, is_hidden
from leandetr.data.split_names import ALIASES, ALL, SPLITS, child, split_folders, split_named
from leandetr.errors import UserError
from leandetr.files import read_json

ROBOFLOW = "_annotations.coco.json"
UNDIVIDED = ("instances_default", "instances", "default", "annotations", "coco", "result", "labels", "_annotations.coco")
TRIED = 50  # images by whose names a folder is recognised


def own_annotations(data: Path, split: str) -> Path | None:
    """`annotations/instances_{split}.json`, or COCO's `{split}2017`."""
    files = [data / "annotations" / f"instances_{name}.json" for name in (split, f"{split}2017")]
    return next(filter(Path.is_file, files), None)


def find_coco(data: Path, known: Collection[str] = ()) -> dict[str, Path]:
    """The JSON of every split of a folder besides those that are known, or {"all": the only one}; {} where there is none.

    Of files for the same split `instances_*.json` and Roboflow's name win, then those named after the split alone; what is
    left must hold COCO's three lists.

    Raises:
        UserError: two files are equally good.
    """
    ranked: dict[str, list[tuple[int, Path]]] = {}
    for split, file in _candidates(data):
        if split in known:
            continue
        ranked.setdefault(split, []).append((_rank(file, split), file))
    found = {split: best for split in (*SPLITS, ALL) if (best := _best(data, split, ranked.get(split, []))) is not None}
    if len(found) > 1:
        found.pop(ALL, None)
    return found


def images_of(data: Path, split: str, file: Path) -> Path:
    """The folder that a split's file names are relative to: the first in which most of the first names are files.

    Raises:
        UserError: no name is a file anywhere, and there is no folder with the split's name.
    """
    named = [path for name in (split, f"{split}2017") if (path := data / name).is_dir()]
    if named and any(entry.suffix.lower() in SUFFIXES for entry in named[0].iterdir()):
        return named[0]
    places = dict.fromkeys([*named, *_image_folders(data, split), file.parent, data])
    names = _first_names(file, file.stat().st_size, file.stat().st_mtime_ns)
    hits = {place: sum(os.path.isfile(place / name) for name in names) for place in places}
    best = max(hits, key=lambda place: hits[place])  # of equal ones the first
    if hits[best]:
        return best
    bare = [Path(name.replace("\\", "/")).name for name in names]
    hits = {place: sum(os.path.isfile(place / name) for name in bare) for place in places}
    best = max(hits, key=lambda place: hits[place])
    if hits[best] or named:
        return best if hits[best] else named[0]
    if folders := _image_folders(data, split):
        return folders[0]
    raise UserError(f"{data} has no folder {split}/ (or {split}2017/); put the images there")


def _image_folders(data: Path, split: str) -> list[Path]:
    found = []
    own = split_folders(data).get(split)
    if own:
        found += [child(own, "images", "data"), own]
    images = child(data, "images", "jpegimages", "data", "imgs")
    if images:
        found += [split_folders(images).get(split), images]
    return [folder for folder in found if folder is not None]


def lists_categories(coco: Any) -> bool:
    """Whether a JSON's categories are as COCO has them, with a number and a name each."""
    categories = coco.get("categories") if isinstance(coco, dict) else None
    return isinstance(categories, list) and all(
        isinstance(entry, dict) and is_whole(entry.get("id")) and isinstance(entry.get("name"), str) for entry in categories
    )


def unused_roots(contents: dict[str, dict[str, Any]]) -> dict[str, set[int]]:
    """By split the ids of categories that are another's supercategory and own no box in any split, as Roboflow writes one.

    contents: the JSON of each split, whose categories are as `lists_categories` has them.
    """
    used, above = set(), set()
    for coco in contents.values():
        categories = coco["categories"]
        names = {entry["id"]: entry["name"] for entry in categories}
        annotated = [entry.get("category_id") for entry in _entries(coco, "annotations")]
        used |= {(of, names.get(of)) for of in filter(is_whole, annotated)}
        for entry in categories:
            others = [other for other in categories if other["id"] != entry["id"]]
            if any(other.get("supercategory") == entry["name"] for other in others):
                above.add((entry["id"], entry["name"]))
    roots = above - used
    return {
        split: {entry["id"] for entry in coco["categories"] if (entry["id"], entry["name"]) in roots}
        for split, coco in contents.items()
    }


def _entries(coco: Any, section: str) -> list[dict[str, Any]]:
    entries = coco.get(section) if isinstance(coco, dict) else None
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _candidates(data: Path) -> list[tuple[str, Path]]:
    """(split, JSON) of every file that may be one."""
    if not data.is_dir():
        return []
    found = []
    for folder in dict.fromkeys([data, *filter(None, [child(data, "annotations", "annotation")])]):
        for file in _json_files(folder):
            split = split_named(file.stem) or (ALL if _is_undivided(file.stem) else None)
            found += [(split, file)] if split else []
    for split, folder in split_folders(data).items():
        places = [folder, *filter(None, [child(folder, "annotations")])]
        found += [(split, file) for place in places for file in _json_files(place) if split_named(file.stem) in (split, None)]
    if not found and len(files := _json_files(data)) == 1:
        found = [(ALL, files[0])]
    return found


def _json_files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("*.json")) if not is_hidden(path) and path.is_file()]


def _is_undivided(stem: str) -> bool:
    return stem.lower() in UNDIVIDED


def _rank(file: Path, split: str) -> int:
    stem = file.stem.lower()
    if stem.startswith("instances_") or file.name == ROBOFLOW:
        return 0
    return 1 if stem in ALIASES.get(split, ()) or _is_undivided(stem) else 2


def _best(data: Path, split: str, ranked: list[tuple[int, Path]]) -> Path | None:
    for rank in sorted({rank for rank, _ in ranked}):
        files = [file for own, file in ranked if own == rank]
        if rank == 0 and len(files) == 1:
            return files[0]
        good = [file for file in files if _is_coco(file, file.stat().st_size, file.stat().st_mtime_ns)]
        if len(good) > 1:
            shown = ", ".join(str(file.relative_to(data)) for file in good)
            raise UserError(f"{data} has several COCO files for {split} ({shown}); name one with --annotations and --images")
        if good:
            return good[0]
    return None


@lru_cache(maxsize=64)
def _is_coco(file: Path, size: int, changed: int) -> bool:
    """Whether a file of this size and time holds COCO's three lists."""
    try:
        coco = read_json(file)
    except UserError:
        return False
    return isinstance(coco, dict) and all(isinstance(coco.get(key), list) for key in ("images", "annotations", "categories"))


@lru_cache(maxsize=64)
def _first_names(file: Path, size: int, changed: int) -> tuple[str, ...]:
    names = (entry.get("file_name") for entry in _entries(read_json(file), "images"))
    return tuple(name for name in names if isinstance(name, str))[:TRIED]
