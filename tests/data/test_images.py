"""What reading promises: any photograph becomes upright RGB in the annotations' frame; what cannot be read is named."""

import logging
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from leandetr.data.images import fault_of, read_image, read_pixels, to_rgb
from leandetr.errors import UserError

RED = np.array([200, 40, 40], dtype=np.uint8)


def gradient(height=48, width=64):
    """Dark at the left and top, bright at the right and bottom: 8-bit grey."""
    return np.add.outer(np.arange(height), np.arange(width)).astype(np.uint8)


def close(image, expected, tolerance=0):
    return image.mode == "RGB" and np.abs(np.asarray(image).astype(int) - expected.astype(int)).max() <= tolerance


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK", "I;16"])
def test_every_kind_of_image_becomes_rgb(tmp_path, mode):
    grey = gradient()
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    if mode == "I;16":
        Image.fromarray(grey.astype(np.uint16) * 257).save(path)
    elif mode == "P":
        Image.fromarray(np.stack([grey] * 3, axis=-1)).quantize(256).save(path)
    else:
        Image.fromarray(grey).convert("RGB").convert(mode).save(path)
    expected = np.asarray(Image.fromarray(grey).convert("1").convert("L")) if mode == "1" else grey
    assert close(read_image(path), expected[..., None], tolerance=1 if mode in ("P", "CMYK") else 0)


@pytest.mark.parametrize(("values", "white"), [(np.float32, 1), (np.float32, 255)])
def test_floats_are_scaled_by_their_white(tmp_path, values, white):
    grey = gradient(200, 56)
    Image.fromarray((grey / (255 / white)).astype(values)).save(tmp_path / "image.tif")
    assert close(read_image(tmp_path / "image.tif"), grey[..., None])


def test_twelve_bits_are_scaled_where_the_file_says_so(tmp_path):
    grey = gradient(8, 8).astype(np.uint16)
    image = Image.fromarray(np.round(grey * (4095 / 255)).astype(np.uint16))
    image.tag_v2 = {258: (12,)}  # as Pillow opens a TIFF whose BitsPerSample is 12
    assert close(to_rgb(image), grey[..., None])


@pytest.mark.parametrize(("low", "high"), [(-1, 1), (0, 4000)])
def test_floats_of_unknown_white_are_refused(tmp_path, low, high):
    Image.fromarray(np.linspace(low, high, 64, dtype=np.float32).reshape(8, 8)).save(tmp_path / "image.tif")
    with pytest.raises(
        UserError, match=rf"image\.tif cannot be decoded \(it holds floats from {low} to {high}; write it with 8"
    ):
        read_image(tmp_path / "image.tif")


def test_what_is_transparent_becomes_white(tmp_path):
    pixels = np.zeros((4, 4, 4), dtype=np.uint8)
    pixels[:2] = [*RED, 255]
    Image.fromarray(pixels).save(tmp_path / "image.png")
    expected = np.full((4, 4, 3), 255, dtype=np.uint8)
    expected[:2] = RED
    assert close(read_image(tmp_path / "image.png"), expected)


def save_turned(path, orientation, pixels):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)


TURNED = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).T,
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", TURNED)
def test_images_are_turned_upright(tmp_path, orientation):
    pixels = gradient()
    save_turned(tmp_path / "image.png", orientation, pixels)
    upright = TURNED[orientation](pixels)
    assert close(read_image(tmp_path / "image.png"), upright[..., None])
    assert close(read_image(tmp_path / "image.png", upright.shape), upright[..., None])


def test_an_image_that_was_annotated_unturned_stays_unturned(tmp_path):
    save_turned(tmp_path / "image.png", 6, gradient())
    assert close(read_image(tmp_path / "image.png", (48, 64)), gradient()[..., None])


def test_an_image_resized_after_annotation_is_brought_back_into_the_boxes_frame(tmp_path, caplog):
    Image.fromarray(gradient(24, 32)).save(tmp_path / "image.png")
    with caplog.at_level(logging.WARNING):
        assert read_image(tmp_path / "image.png", (48, 64)).size == (64, 48)
    assert "image.png is 32 x 24 pixels but its annotations say 64 x 48" in caplog.text


def test_an_image_of_another_shape_is_refused(tmp_path):
    Image.fromarray(gradient(48, 64)).save(tmp_path / "image.png")
    with pytest.raises(UserError, match=r"image\.png is 64 x 48 pixels but its annotations say 48 x 64"):
        read_image(tmp_path / "image.png", (64, 48))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:900]), "cannot be decoded"),
        (lambda path: path.write_bytes(b"text"), "is not an image"),
        (lambda path: path.write_bytes(b""), "is not an image"),
        (lambda path: path.unlink(), "does not exist"),
    ],
    ids=["truncated", "text", "empty", "missing"],
)
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_what_cannot_be_read_is_named(tmp_path, spoil, message, suffix):
    path = tmp_path / f"photo.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(path)
    spoil(path)
    with pytest.raises(UserError, match=message) as caught:
        read_image(path)
    assert f"photo.{suffix}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_claims_more_pixels_than_memory_holds_is_refused_by_its_head(tmp_path):
    """A PNG of 100 bytes that says 50,000 x 50,000 pixels, 7.5 GB in RGB."""
    head = b"IHDR" + struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    parts = [head, b"IDAT" + zlib.compress(b""), b"IEND"]
    chunks = [struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in parts]
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    for read in (read_image, read_pixels):
        with pytest.raises(UserError, match=r"bomb\.png says that it has more than 178 million pixels, which is not decoded"):
            read(path)
    kind, example = fault_of(path)
    assert kind == "unreadable image"
    assert "more than 178 million pixels" in example


@pytest.mark.parametrize(("form", "suffix"), [("GIF", "gif"), ("WEBP", "webp"), ("PNG", "jpg"), ("JPEG", "png")])
def test_of_several_frames_the_first_is_read_and_endings_do_not_count(tmp_path, form, suffix):
    path = tmp_path / f"image.{suffix}"
    frames = [Image.new("RGB", (16, 8), colour) for colour in ("white", "black")]
    more = {"save_all": True, "append_images": frames[1:]} if suffix in ("gif", "webp") else {}
    frames[0].save(path, form, **more)
    assert close(read_image(path), np.full((8, 16, 3), 255))
    assert read_pixels(path).min() == 255


def test_a_frame_that_no_memory_holds_is_refused(tmp_path):
    Image.fromarray(gradient(64, 64)).save(tmp_path / "a.png")
    size = (6_400_000, 6_400_000)  # the file's own proportions
    assert fault_of(tmp_path / "a.png", size)[0] == "size is too large"
    with pytest.raises(UserError, match="its annotations say 6400000 x 6400000"):
        read_image(tmp_path / "a.png", size)
