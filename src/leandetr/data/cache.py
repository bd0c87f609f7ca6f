"""Where what is made of data sets lies: the user's cache, one folder for every state of one.

It is `$XDG_CACHE_HOME/leandetr/data` (`~/.cache/leandetr/data`). Names, sizes and times of all files of a data set are its key,
so that a changed data set is read again.
"""

import hashlib
import os
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path


def cache_folder(state: str) -> Path:
    """The folder of one state of something in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "leandetr" / "data" / state


def state_of_places(source: Path, places: Iterable[Path]) -> str:
    """A digest of the names, sizes and times of all files in some places, and of who reads them."""
    found, places = [f"{version('leandetr')} {source.resolve()}"], list(places)
    files = [str(place) for place in places if place.is_file()]
    files += [os.path.join(parent, name) for place in places for parent, _, names in os.walk(place) for name in names]
    for path in files:
        known = os.stat(path) if os.path.exists(path) else os.lstat(path)
        found.append(f"{path} {known.st_size} {known.st_mtime_ns}")
    return hashlib.sha256("\n".join(sorted(found)).encode(errors="surrogateescape")).hexdigest()[:32]
