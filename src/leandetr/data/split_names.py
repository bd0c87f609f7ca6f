"""What tools call the parts of a data set."""

import re
from pathlib import Path

SPLITS = ("train", "val", "test")
ALL = "all"  # a set that is not divided
ALIASES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "validate", "dev"),
    "test": ("test", "testing"),
}
_SPLIT_OF = {alias: split for split, aliases in ALIASES.items() for alias in aliases}


def split_named(name: str) -> str | None:
    """The split that a name stands for.

    >>> [split_named(name) for name in ("train2017", "instances_Train", "valid", "val-test", "trainval", "photos")]
    ['train', 'train', 'val', None, None, None]
    """
    found = {_SPLIT_OF[word] for word in re.split(r"[^a-z]+", name.lower()) if word in _SPLIT_OF}
    return found.pop() if len(found) == 1 else None


def split_folders(folder: Path) -> dict[str, Path]:
    """The folders in a folder that are named after a split, `train` before `training` before `train2017`."""
    found: dict[str, Path] = {}
    inside = [path for path in sorted(folder.iterdir()) if path.is_dir()] if folder.is_dir() else []
    for split, aliases in ALIASES.items():
        order = [*aliases, *(path.name.lower() for path in inside if split_named(path.name) == split)]
        named = [path for path in inside if path.name.lower() in order]
        if named:
            found[split] = min(named, key=lambda path: order.index(path.name.lower()))
    return found


def child(folder: Path, *names: str) -> Path | None:
    """The first folder of these names in a folder, upper and lower case alike."""
    inside = {path.name.lower(): path for path in sorted(folder.iterdir()) if path.is_dir()} if folder.is_dir() else {}
    return next((inside[name] for name in names if name in inside), None)
