"""Any photograph as 8-bit RGB, upright, in the frame that its annotations use."""

import logging
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor
from torchvision.io import decode_jpeg, read_file

from leandetr.errors import UserError

logger = logging.getLogger(__name__)

ENDS = {b"\xff\xd8": b"\xff\xd9", b"\x89PNG": b"IEND"}  # by how the files start: JPEG, PNG
TAIL = 4096  # bytes in which the end is sought: some tools write more behind it

TURN = ExifTags.Base.Orientation
# What undoes each EXIF orientation; 5 to 8 swap width and height.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(path: Path | BinaryIO, size: tuple[int, int] | None = None, name: str | None = None) -> Image.Image:
    """The image as RGB, turned upright as its EXIF orientation says.

    Args:
        path: the image file, or one that is open; `decode` says how its colours are converted.
        size: (height, width) that the annotations give for it: the frame in which their boxes are measured. Where a file whose
            EXIF says "turn by 90 degrees" has this size unturned, its boxes were drawn on the unturned image, and it is left
            so. Where the file has other dimensions in the same proportions, it was resized after it was annotated, and
            the image is resized to the frame.
        name: what errors call it; its path by default.

    Raises:
        UserError: no such file, no image, a truncated image, or one whose proportions are not those of `size`.
    """
    image, orientation = decode(path, name)
    if orientation in UPRIGHT and not (swaps_sides(orientation) and size == (image.height, image.width)):
        image = image.transpose(UPRIGHT[orientation])
    return image if size in (None, (image.height, image.width)) else _fit(image, size, name or str(path))


def read_pixels(path: Path, size: tuple[int, int] | None = None) -> Tensor:
    """What `read_image` reads, with its errors, as (3, h, w) uint8, the channels of a pixel side by side in memory.

    JPEGs in colour that need no turn and no resize, nearly all photographs, are decoded without Pillow's copies: libjpeg makes
    the same pixels, two to three times as fast for large ones.
    """
    if _is_plain_jpeg(path, size):
        try:
            return decode_jpeg(read_file(str(path)))
        except RuntimeError:
            pass  # `read_image` says in words what is wrong
    return pixels_of(read_image(path, size))


def pixels_of(image: Image.Image) -> Tensor:
    """An RGB image as (3, h, w) uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _is_plain_jpeg(path: Path, size: tuple[int, int] | None) -> bool:
    try:
        with Image.open(path) as image:
            colour = image.format in ("JPEG", "MPO") and image.mode == "RGB"
            return colour and size in (None, (image.height, image.width)) and image.getexif().get(TURN, 1) not in UPRIGHT
    except Exception:  # Pillow's readers raise whatever the bytes lead them to
        return False


def decode(path: Path | BinaryIO, name: str | None = None) -> tuple[Image.Image, int]:
    """The image as stored, in RGB, and its EXIF orientation from 1 (upright) to 8. `path` and `name` are as in `read_image`.

    Grey, palette and CMYK images are converted; 16 bits are scaled to 8, 12 bits too where the file says so, floats from 0 to 1
    too; what is transparent becomes white, as viewers and annotation tools show it.

    Raises:
        UserError: no such file, no image, floats beyond 0 to 255, or not all of its pixels can be decoded.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return to_rgb(image), image.getexif().get(TURN, 1)
    except FileNotFoundError as error:
        raise UserError(f"the image {path} does not exist; restore it or leave it out") from error
    except (
        Exception
    ) as error:  # Pillow's readers raise whatever the bytes lead them to: OSError, SyntaxError, struct.error, ...
        raise UserError(f"{name or path} {reason(error)}; replace the file or leave it out") from error


def reason(error: Exception) -> str:
    """What Pillow's readers say of a file, in words. They take no memory for what claims to be larger than their limit."""
    if isinstance(error, Image.DecompressionBombError):
        return f"says that it has more than {most_pixels() // 10**6} million pixels, which is not decoded"
    return "is not an image" if isinstance(error, Image.UnidentifiedImageError) else f"cannot be decoded ({error})"


def has_frames(image: Image.Image) -> bool:
    """Whether an open image has several frames, of which the first is read; a phone's JPEG with a preview beside it has one."""
    return image.format != "MPO" and getattr(image, "is_animated", False)


def most_pixels() -> int:
    """Pixels beyond which Pillow takes no memory for an image."""
    return 2 * (Image.MAX_IMAGE_PIXELS or 0)


def image_sizes(path: Path) -> tuple[tuple[int, int], tuple[int, int]]:
    """(height, width) as stored, and as seen once the EXIF turn is made; only the file's head is read.

    Raises:
        UserError: the file is not an image.
    """
    try:
        with Image.open(path) as image:
            stored, orientation = (image.height, image.width), image.getexif().get(TURN, 1)
    except Exception as error:  # Pillow's readers raise whatever the bytes lead them to
        raise UserError(f"{path} {reason(error)}; replace the file or remove it with its boxes") from error
    return stored, stored[::-1] if swaps_sides(orientation) else stored


def fault_of(path: Path, size: tuple[int, int] = (0, 0)) -> tuple[str, str] | None:
    """Why `read_image` cannot read an image in a frame of (height, width): kind of fault and example; None where it can, as far
    as its head and its end tell. Only where its end is not there is it decoded.

    size: zeros where the frame is the image's own.
    """
    try:
        stored, upright = image_sizes(path)
        if not _has_end(path):
            decode(path)
    except UserError as error:
        return "unreadable image", str(error).partition(";")[0]
    if size[0] * size[1] > most_pixels():
        return "size is too large", f"{path}: {size[1]} x {size[0]} in the annotations, of which no image is made"
    if min(size) > 0 and size != stored and not same_proportions(size, upright):
        return "proportions differ from the file", (
            f"{path}: {size[1]} x {size[0]} in the annotations, {upright[1]} x {upright[0]} in the file"
        )
    return None


def _has_end(path: Path) -> bool:
    """Whether a file ends as its format does; of formats whose files do not show it, True."""
    with open(path, "rb") as file:
        end = next((end for start, end in ENDS.items() if file.read(len(start)) == start or file.seek(0)), b"")
        file.seek(-min(TAIL, os.fstat(file.fileno()).st_size), os.SEEK_END)
        return end in file.read()


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB: 12 and 16 bits are scaled to 8, floats from 0 to 1 by 255, what is transparent is laid on white.

    Raises ValueError for floats beyond 0 to 255, whose white nobody knows.
    """
    if image.mode.startswith("I"):  # 16 bits; Pillow's own conversion turns all above 255 white
        white = 4095 if _bits(image) == 12 else 65535
        pixels = np.clip(np.asarray(image), 0, white)
        image = Image.fromarray(np.round(pixels * (255 / white)).astype(np.uint8))
    elif image.mode == "F":
        pixels = np.asarray(image)
        low, high = float(pixels.min()), float(pixels.max())
        if not (low >= 0 and high <= 255):
            raise ValueError(f"it holds floats from {low:g} to {high:g}; write it with 8 bits, or with floats from 0 to 1")
        image = Image.fromarray(np.round(pixels * (255 if high <= 1 else 1)).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def bits_of(path: Path) -> int:
    """Bits a channel of an image file that can be read."""
    with Image.open(path) as image:
        return _bits(image) if image.mode.startswith("I") else 8


def _bits(image: Image.Image) -> int:
    """Bits a channel that a TIFF says it has; 16 where the format has no such field."""
    tags = getattr(image, "tag_v2", None) or {}
    return tags.get(ExifTags.Base.BitsPerSample, (16,))[0]


def swaps_sides(orientation: int) -> bool:
    """Whether an image of this EXIF orientation is shown with its width and height exchanged."""
    return orientation in (5, 6, 7, 8)


def same_proportions(a: tuple[int, int], b: tuple[int, int]) -> bool:
    """Whether the one size is the other one scaled, up to the rounding of either to whole pixels."""
    return abs(a[0] * b[1] - a[1] * b[0]) <= max(sum(a), sum(b))


def _fit(image: Image.Image, size: tuple[int, int], path: str) -> Image.Image:
    height, width = size
    sizes = f"is {image.width} x {image.height} pixels but its annotations say {width} x {height}"
    if not same_proportions((image.height, image.width), size) or height * width > most_pixels():
        raise UserError(f"{path} {sizes}; correct the JSON or replace the file (`leandetr data check` lists them all)")
    logger.warning("%s %s: resized to the annotations' size", path, sizes)
    return image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=3.0)
