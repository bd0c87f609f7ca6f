"""Any photograph as 8-bit RGB, upright, in the frame that its annotations use."""

import logging
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from leandetr.errors import UserError

logger = logging.getLogger(__name__)

QUARTER_TURNS = (5, 6, 7, 8)  # EXIF orientations that swap width and height


def read_image(path: Path, size: tuple[int, int] | None = None) -> Image.Image:
    """The image as RGB, turned upright as its EXIF orientation says.

    Grey, palette, CMYK and 16-bit images are converted (16 bits are scaled to 8, not cut off); what is transparent becomes
    white, as viewers and annotation tools show it.

    Args:
        path: the image file.
        size: (height, width) that the annotations give for it: the frame in which their boxes are measured. Where the file as
            stored, before its EXIF turn by 90 degrees, has this size, the boxes were drawn on the unturned image and it is left
            unturned. Where the file has other dimensions in the same proportions, it was resized after it was annotated,
            and the image is resized to the frame.

    Raises:
        UserError: no such file, no image, a truncated image, or one whose proportions are not those of `size`.
    """
    image = decode(path)
    if size is None:
        return to_rgb(ImageOps.exif_transpose(image))
    frame = (size[1], size[0])
    if image.size != frame or not is_turned(image):
        image = ImageOps.exif_transpose(image)
    image = to_rgb(image)
    return image if image.size == frame else _fit(image, frame, path)


def decode(path: Path) -> Image.Image:
    """The image as stored, with every pixel decoded. Raises UserError where that cannot be done."""
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except FileNotFoundError as error:
        raise UserError(f"the image {path} does not exist; restore it or remove it from the annotations") from error
    except Exception as error:  # Pillow's readers raise whatever the bytes lead them to: OSError, SyntaxError, struct.error, ...
        reason = "is not an image" if isinstance(error, Image.UnidentifiedImageError) else f"cannot be decoded ({error})"
        raise UserError(f"{path} {reason}; replace the file or remove it from the annotations") from error


def is_turned(image: Image.Image) -> bool:
    """Whether the image's EXIF orientation swaps its width and height."""
    return image.getexif().get(ExifTags.Base.Orientation) in QUARTER_TURNS


def to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits, of which Pillow's own conversion keeps all above 255 as white
        pixels = np.clip(np.asarray(image), 0, 65535)
        image = Image.fromarray((pixels / 257 + 0.5).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def same_proportions(a: tuple[int, int], b: tuple[int, int]) -> bool:
    """Whether the one size is the other one scaled, up to the rounding of either to whole pixels."""
    slack = max(a[0], b[0]) + max(a[1], b[1])
    return abs(a[0] * b[1] - a[1] * b[0]) <= slack


def _fit(image: Image.Image, frame: tuple[int, int], path: Path) -> Image.Image:
    sizes = f"is {image.width} x {image.height} pixels but its annotations say {frame[0]} x {frame[1]}"
    if not same_proportions(image.size, frame):
        raise UserError(f"{path} {sizes}; correct the size in the JSON or replace the file (`leandetr data check` lists all)")
    logger.warning("%s %s: resized to the annotations' size", path, sizes)
    return image.resize(frame, Image.Resampling.BILINEAR, reducing_gap=3.0)
