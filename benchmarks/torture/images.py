"""Photographs as people have them, and as nobody should: other modes, other endings, damaged, or claiming to be huge."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from random import Random

import numpy as np
from PIL import Image

from torture.mutate import data

SIDE = 48
MODES = (
    *(("JPEG", mode) for mode in ("CMYK", "L")),
    *(("PNG", mode) for mode in ("I;16", "P", "RGBA", "LA", "1")),
    *(("TIFF", mode) for mode in ("F", "I", "I;16", "CMYK", "LAB")),
)


def image(random: Random) -> bytes:
    """The bytes of a file, of an image or of what says it is one."""
    whole = random.choice(KINDS)(random)
    return data(random, whole) if random.random() < 0.5 else whole


def _noise(random: Random) -> Image.Image:
    pixels = np.random.default_rng(random.randrange(2**32)).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    return Image.fromarray(pixels)


def _saved(picture: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def _plain(random: Random) -> bytes:
    return _saved(_noise(random), random.choice(["JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM", "ICO", "TGA"]))


def _mode(random: Random) -> bytes:
    form, mode = random.choice(MODES)
    picture = _noise(random)
    if mode in ("I;16", "I", "F"):
        picture = Image.fromarray(np.asarray(picture.convert("L")).astype({"I;16": np.uint16, "I": np.int32}.get(mode, "f4")))
    elif mode == "LAB":
        picture = Image.frombytes("LAB", picture.size, picture.tobytes())
    else:
        picture = picture.convert(mode)
    return _saved(picture, form)


def _animated(random: Random) -> bytes:
    frames = [_noise(random) for _ in range(random.randint(2, 5))]
    form = random.choice(["GIF", "WEBP", "PNG", "TIFF"])
    return _saved(frames[0], form, save_all=True, append_images=frames[1:])


def _turned(random: Random) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = random.choice([*range(1, 9), 0, 9, 65535])
    return _saved(_noise(random), "JPEG", exif=exif)


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _bomb(random: Random) -> bytes:
    """A PNG of few bytes that claims many pixels; the last size has more than 2**31 of them."""
    width, height = random.choice([(50_000, 50_000), (12_000, 12_000), (50_000, 1), (1, 50_000), (65_535, 65_535), (0, 10)])
    head = struct.pack(">IIBBBBB", width, height, 8, random.choice([0, 2, 6]), 0, 0, 0)
    rows = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")


def _none(random: Random) -> bytes:
    return random.choice(
        [b"", b"\xff\xd8\xff\xd9", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.4", b"text\n", bytes(5000)]
    )


KINDS: list[Callable[[Random], bytes]] = [_plain, _plain, _mode, _mode, _animated, _turned, _bomb, _none]
ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".JPG")
