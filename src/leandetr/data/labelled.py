"""What the readers of other layouts return: images with named boxes, apart from how a layout stores them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from leandetr.data.faults import Faults, Unusable
from leandetr.data.images import image_sizes
from leandetr.data.split_names import ALL
from leandetr.errors import UserError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


@dataclass(frozen=True)
class LabelledObject:
    """One object. box: (x, y, width, height) in pixels, x and y from the image's left and upper edge. difficult: VOC's flag;
    None where the layout has no such flag. crowd: COCO's `iscrowd`. area: in pixels, where it is not that of the box."""

    name: str
    box: tuple[float, float, float, float]
    difficult: bool | None = None
    crowd: bool = False
    area: float | None = None


@dataclass(frozen=True)
class LabelledImage:
    """One image. name: its path below the folder of its split. size: (height, width) of the frame in which the boxes lie."""

    path: Path
    name: str
    size: tuple[int, int]
    objects: list[LabelledObject]


@dataclass(frozen=True)
class Labelled:
    """names: the classes in the order of their ids. splits: images of "train", "val" and "test", as far as there are such, or
    of "all". faults: of each split the entries and images that are left out. refused: why nothing of it can be trusted, in one
    sentence; it can be checked all the same. said: what a user should know of how it was read."""

    names: list[str]
    splits: dict[str, list[LabelledImage]]
    faults: dict[str, Faults]
    refused: str | None = None
    said: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class LabelledSet:
    """A data set of another layout than COCO's, recognised but not read yet.

    splits: what there is of "train", "val" and "test", or "all" where the images are not divided. places: the files and folders
    in which what `read` reads lies. said: what a user should know of how it was recognised, fallbacks above all. read: raises
    UserError where there is nothing to read; faulty boxes, images and files are left out one by one.
    """

    splits: tuple[str, ...]
    places: list[Path]
    said: list[str]
    read: Callable[[], Labelled]


def is_hidden(path: Path) -> bool:
    """Whether a file is one of an operating system's (`._a.jpg`, `.DS_Store`)."""
    return path.name.startswith(".") or "__MACOSX" in path.parts


def image_files(folder: Path, deep: bool = True) -> list[Path]:
    """The images in a folder and, unless told otherwise, below it, sorted; no hidden ones."""
    found = folder.rglob("*") if deep else folder.iterdir()
    return sorted(path for path in found if path.suffix.lower() in SUFFIXES and not is_hidden(path) and path.is_file())


def read_text(path: Path) -> str:
    """A text file of a data set. Raises UserError where it is missing or not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")  # some tools on Windows put a mark in front
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; restore the file") from error
    except ValueError as error:
        raise UserError(f"{path} is not UTF-8 text; write it again as UTF-8") from error


def sizes_of(path: Path) -> tuple[tuple[int, int], tuple[int, int]]:
    """As `image_sizes`. Raises Unusable where the file is not an image."""
    try:
        return image_sizes(path)
    except UserError as error:
        raise Unusable("unreadable image", str(path)) from error


def refusal(splits: Mapping[str, Sequence[LabelledImage]], place: Path) -> str | None:
    """Why a data set is refused of whose images none of one split is left."""
    empty = next((split for split, images in splits.items() if not images), None)
    part = "image" if empty == ALL else f"image of {empty}"
    return None if empty is None else f"{place} has no {part} that can be read with its boxes; `leandetr data check` lists why"


def tracked(items: Iterable[Any], what: str, total: int | None) -> Iterator[Any]:
    """The items, with a progress bar on stderr where that is a terminal."""
    console = Console(stderr=True)
    return iter(track(items, what, total, console=console, disable=not console.is_terminal, transient=True))
