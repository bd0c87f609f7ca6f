"""Where the images of a COCO JSON are, when its file names are those of another machine or relative to another folder."""

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

logger = logging.getLogger(__name__)


def located(names: Sequence[str], images: Path, roots: Iterable[Path] = ()) -> list[str]:
    """The names, relative to `images`, under which the files are.

    A name that is a file below `images` or a root as it stands stays as it is. For the others backslashes are folded, URL
    escapes undone, and leading folders left out one by one, while the rest is sought below `images` and the roots; last comes
    the bare name, where it is that of one file below `images`. Nothing outside of these folders is found in that way, and no
    file is found for two names.
    What is not found stays as it is.

    Args:
        roots: folders besides `images` to which names may be relative: that of the JSON, that of the data set.
    """
    places = list(dict.fromkeys([images, *roots]))
    led_out = set(leading_out([images / name for name in names], places))
    lost = [index for index, name in enumerate(names) if images / name in led_out or not os.path.isfile(images / name)]
    if not lost:
        return list(names)
    by_name: dict[str, list[Path]] = {}
    for path in _files_below(images):
        by_name.setdefault(path.name, []).append(path)
    found = {index: place for index in lost if (place := _find(names[index], places, by_name)) is not None}
    taken = Counter(found.values()) + Counter(images / name for index, name in enumerate(names) if index not in found)
    result = list(names)
    for index, path in found.items():
        if taken[path] == 1:
            result[index] = os.path.relpath(path, images) if _below(path, images) else str(path.absolute())
    return result


def leading_out(paths: Iterable[Path], places: Sequence[Path]) -> list[Path]:
    """Of the paths those that are written as places outside of these folders: absolute, or by `..`, which a `..` behind a link
    is too. Links may lead anywhere."""
    doubtful = [path for path in paths if ".." in path.parts or not any(map(path.is_relative_to, places))]
    if not doubtful:
        return []
    folders = {of(place).rstrip(os.sep) + os.sep for place in places for of in (os.path.abspath, os.path.realpath)}
    return [path for path in doubtful if not _written_below(path, tuple(folders))]


def _written_below(path: Path, folders: tuple[str, ...]) -> bool:
    written = os.path.abspath(path)  # which folds `link/..` without looking where the link leads
    return written.startswith(folders) and (".." not in path.parts or os.path.realpath(path) == os.path.realpath(written))


def difference(names: Sequence[str], result: Sequence[str]) -> str:
    """What `located` changed, in words; "" where nothing."""
    changed = [(name, now) for name, now in zip(names, result, strict=True) if name != now]
    if not changed:
        return ""
    return (
        f"{len(changed)} of {len(names)} file names are not there as written; for {changed[0][0]!r} {changed[0][1]!r} is read"
    )


def _find(name: str, places: list[Path], by_name: dict[str, list[Path]]) -> Path | None:
    for text in dict.fromkeys((name, unquote(name))):
        parts = _parts(text)
        for start in range(len(parts) - 1):
            for place in places:
                path = place.joinpath(*parts[start:])
                if os.path.isfile(path):
                    return path
        if parts and len(same := by_name.get(parts[-1], [])) == 1:
            return same[0]
    return None


def _parts(name: str) -> list[str]:
    """The folders and the file of a name, without drive, root and what leads out of a folder."""
    name = re.sub(r"^([A-Za-z]:|[a-z]+://[^/]*)", "", name.replace("\\", "/"))
    return [part for part in PurePosixPath(name.partition("?")[0]).parts if part not in ("/", "//", "..", ".")]


def _below(path: Path, folder: Path) -> bool:
    return path.is_relative_to(folder)


def _files_below(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent, name) for name in names if not name.startswith("."))
