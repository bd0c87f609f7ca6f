"""The state of what a command reads, so that a result made from something else is never taken for a fresh one.

A state is a mapping from what was read, in words ("annotations of train"), to a digest of it.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

State = dict[str, str]

#: Of a folder that holds a detector, the files that decide its answers.
WEIGHTS = ("config.json", "preprocessor_config.json", "*.safetensors", "*.bin")


def weights_state(what: str, source: str | Path | None) -> State:
    """The bytes of a file, or of the configuration and weights in a folder; nothing for what is neither (a hub id, the name of
    a package)."""
    if source is None or not os.path.exists(source):
        return {}
    path = Path(source)
    files = [path] if path.is_file() else sorted(file for pattern in WEIGHTS for file in path.glob(pattern))
    return {f"{what} {source}": digest([(file.name, file_digest(file)) for file in files])}


def files_digest(folder: Path, names: Iterable[str]) -> str:
    """Of the names and sizes of files; one that is missing has no size."""
    return digest([(name, os.path.getsize(file) if os.path.isfile(file := folder / name) else None) for name in names])


def file_digest(file: Path) -> str:
    """Sixteen hexadecimal digits of a file's bytes."""
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()[:16]


def digest(value: object) -> str:
    """Sixteen hexadecimal digits of a value's `repr`."""
    return hashlib.sha256(repr(value).encode(errors="surrogateescape")).hexdigest()[:16]


def changed(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """What is not as it was, in words; "" where all is.

    >>> changed({"annotations of train": "5f", "teacher runs/a": "e1"}, {"annotations of train": "77", "teacher runs/a": "e1"})
    'annotations of train'
    """
    return " and ".join(what for what in {**before, **now} if before.get(what) != now.get(what))
