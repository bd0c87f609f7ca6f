"""Photographs that anybody may have sent, opened with the least trust."""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from leandetr.data.images import has_frames, read_image, reason
from leandetr.errors import UserError
from leandetr.serving.limits import Refused

#: Pillow's names of what is read. It knows more, among them formats that it gives to other programs (EPS).
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "AVIF", "TIFF", "PPM", "JPEG2000")
#: the same as people call them
KINDS = "JPEG, PNG, BMP, GIF, WebP, AVIF, TIFF, PPM, JPEG 2000"


@dataclass(frozen=True)
class Sent:
    """A file that was sent: its bytes, and what it is called."""

    file: BinaryIO
    name: str


@dataclass(frozen=True)
class Opened:
    """image: RGB, upright, as `leandetr predict` reads it. several: whether the file has more frames than this first one."""

    image: Image.Image
    several: bool


def open_photograph(sent: Sent, megapixels: float) -> Opened:
    """Decode a file whose head says that it may be decoded.

    Raises:
        Refused: 415 for what is no image of `FORMATS`, 413 for more million pixels than that, 400 for what cannot be decoded.
    """
    several = _check_head(sent, megapixels)
    sent.file.seek(0)
    try:
        return Opened(read_image(sent.file, name=sent.name), several)
    except UserError as error:
        raise Refused(400, str(error)) from error


def _check_head(sent: Sent, megapixels: float) -> bool:
    """Whether there are several frames; they are not counted, since a small file may have millions."""
    try:
        with Image.open(sent.file, formats=FORMATS) as image:
            width, height = image.size
            if width * height <= megapixels * 1e6:
                return has_frames(image)
    except UnidentifiedImageError as error:
        raise Refused(415, f"{sent.name} is not an image that is read here; send one of {KINDS}") from error
    except Image.DecompressionBombError as error:
        raise Refused(413, f"{sent.name} {reason(error)}; send a smaller one") from error
    except Exception as error:  # Pillow's readers raise whatever the bytes lead them to
        raise Refused(400, f"{sent.name} {reason(error)}; send the whole file") from error
    raise Refused(413, f"{sent.name} has {width} x {height} pixels, more than {megapixels:g} million; send a smaller one")
