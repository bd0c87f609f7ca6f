"""What the readers of other layouts return: images with named boxes, apart from how a layout stores them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image
from rich.console import Console
from rich.progress import track

from leandetr.data.images import swaps_sides
from leandetr.errors import UserError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


@dataclass(frozen=True)
class LabelledObject:
    """One object. box: (x, y, width, height) in pixels, x and y from the image's left and upper edge. difficult: VOC's flag;
    None where the layout has no such flag."""

    name: str
    box: tuple[float, float, float, float]
    difficult: bool | None = None


@dataclass(frozen=True)
class LabelledImage:
    """One image. name: its path below the folder of its split. size: (height, width) of the frame in which the boxes lie."""

    path: Path
    name: str
    size: tuple[int, int]
    objects: list[LabelledObject]


@dataclass(frozen=True)
class Labelled:
    """names: the classes in the order of their ids. train, val: the two splits."""

    names: list[str]
    train: list[LabelledImage]
    val: list[LabelledImage]


def image_files(folder: Path) -> list[Path]:
    """The images in a folder and below it, sorted."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def image_sizes(path: Path) -> tuple[tuple[int, int], tuple[int, int]]:
    """(height, width) as stored, and as seen once the EXIF turn is made; only the file's head is read.

    Raises:
        UserError: the file is not an image.
    """
    try:
        with Image.open(path) as image:
            stored, orientation = (image.height, image.width), image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception as error:  # Pillow's readers raise whatever the bytes lead them to
        raise UserError(f"{path} cannot be read as an image; replace the file or remove it with its boxes") from error
    return stored, stored[::-1] if swaps_sides(orientation) else stored


def read_text(path: Path) -> str:
    """A text file of a data set. Raises UserError where it is missing or not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")  # some tools on Windows put a mark in front
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; restore the file") from error
    except ValueError as error:
        raise UserError(f"{path} is not UTF-8 text; write it again as UTF-8") from error


def tracked(items: Iterable[Any], what: str, total: int) -> Iterator[Any]:
    """The items, with a progress bar on stderr where that is a terminal."""
    console = Console(stderr=True)
    return track(items, what, total, console=console, disable=not console.is_terminal, transient=True)
