"""What a prediction is asked to look at: images, folders with all that is below them, patterns, videos and cameras."""

from __future__ import annotations

import glob
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import chain
from pathlib import Path

from leandetr.data.labelled import is_hidden
from leandetr.errors import UserError

logger = logging.getLogger(__name__)

IMAGES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".avif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2")
VIDEOS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".mts", ".m2ts", ".3gp", ".ogv")
CAMERA = re.compile(r"(camera:)?(\d+)")
WILD = re.compile(r"[*?[]")


class Kind(Enum):
    """What a source is."""

    IMAGE = "image"
    VIDEO = "video"
    CAMERA = "camera"


@dataclass(frozen=True)
class Source:
    """path: of a file, or "camera:0". place: its own path below the folder in which it was found, which its result keeps.
    named: by the user, and not found in a folder or by a pattern."""

    path: Path
    kind: Kind
    place: Path
    named: bool


def find_sources(sources: Sequence[str | Path | int], out: Path) -> list[Source]:
    """All images and then all videos and cameras, each once; hidden files and what lies in the output folder are no sources.

    Args:
        sources: files; folders, with all folders below them; patterns ("photos/**/*.jpg"), which also stand for files where the
            shell has not replaced them; cameras (0, "0" or "camera:0").
        out: the output folder.

    What a folder holds besides is said, with a count.

    Raises:
        UserError: a folder or pattern that gives nothing.
    """
    found: dict[Path, Source] = {}
    for source in sources:
        given = list(_expand(str(source), out))
        if not given:
            raise UserError(f"{source} holds no images or videos ({', '.join(IMAGES + VIDEOS)}); name a folder that does")
        for each in given:
            found.setdefault(each.path.absolute(), each)
    return sorted(found.values(), key=lambda source: source.kind is not Kind.IMAGE)


def result_places(found: Sequence[Source], out: Path) -> list[Path]:
    """Where the result of each lies below `out`, still without a suffix of its own: under its own path, or, where another
    result has that, with its own suffix or a number besides, and that is said.

    Raises:
        UserError: a drawing that would overwrite one of the files.
    """
    originals = {source.path.resolve(): source.path for source in found}
    taken: dict[str, Path] = {}
    places, moved = [], []
    for source in found:
        suffix = ".jpg" if source.kind is Kind.IMAGE else ".mp4"
        first = out / source.place.with_name(source.place.stem)
        numbered = (first.with_name(f"{first.name}-{number}") for number in range(2, len(found) + 2))
        names = chain([first, out / source.place], numbered)
        place = next(name for name in names if _key(name, suffix) not in taken)
        drawing = place.with_name(place.name + suffix)
        if drawing.resolve() in originals:
            original = originals[drawing.resolve()]
            raise UserError(
                f"the drawing of {source.path} would overwrite the photograph {original}; name another output folder"
            )
        if place != first:
            moved.append(f"{source.path} as {drawing}")
        taken[_key(place, suffix)] = source.path
        places.append(place)
    if moved:
        logger.warning("drawings of the same name get longer ones, %d in all: %s", len(moved), moved[0])
    return places


def _key(place: Path, suffix: str) -> str:
    return f"{place}{suffix}".lower()  # some file systems know no case


def _expand(source: str, out: Path) -> Iterator[Source]:
    path = Path(source)
    if path.is_dir():
        yield from _below(path, out)
    elif path.exists():
        yield _file(path, Path(path.name), named=True)
    elif camera := CAMERA.fullmatch(source):
        name = f"camera-{camera[2]}"
        yield Source(Path(f"camera:{camera[2]}"), Kind.CAMERA, Path(name), named=True)
    elif WILD.search(source):
        yield from _matching(source, out)
    else:
        raise UserError(f"{source} does not exist; name an image, a folder, a video or a camera's number")


def _matching(pattern: str, out: Path) -> Iterator[Source]:
    """What a pattern stands for; folders among that with all that they hold."""
    root = Path(WILD.split(pattern, maxsplit=1)[0] + "x").parent
    matched = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
    if not matched:
        raise UserError(f"no file matches {pattern!r}; name a folder or another pattern")
    for path in matched:
        if path.is_dir():
            if not any(other != path and path in other.parents for other in matched):
                yield from _below(path, out, path.relative_to(root))
        else:
            yield _file(path, path.relative_to(root), named=False)


def _below(folder: Path, out: Path, place: Path = Path()) -> Iterator[Source]:
    """The images and videos in a folder and below it, sorted."""
    others, been = Counter[str](), {out.resolve()}
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        if Path(parent).resolve() in been:  # where the results go, or a link that leads back
            folders.clear()
            continue
        been.add(Path(parent).resolve())
        for path in (Path(parent, name) for name in sorted(names)):
            if is_hidden(path):
                continue
            if path.suffix.lower() in IMAGES + VIDEOS:
                yield _file(path, place / path.relative_to(folder), named=False)
            else:
                others[path.suffix.lower() or "no suffix"] += 1
    if others:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(5))
        logger.warning("%s: left out as no images or videos: %d (%s)", folder, others.total(), kinds)


def _file(path: Path, place: Path, named: bool) -> Source:
    kind = Kind.VIDEO if path.suffix.lower() in VIDEOS else Kind.IMAGE
    return Source(path, kind, place, named)
