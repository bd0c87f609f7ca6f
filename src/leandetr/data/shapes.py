"""The embedded synthetic data set: textured shapes over textured backgrounds, in COCO's layout.

Six classes of shapes, at any rotation and stretch, overlap each other and the image's edge. Colour and texture are drawn apart
from the class, and lines, arcs and specks that belong to no class lie in between: only the outline tells what a shape is.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from leandetr.errors import UserError
from leandetr.files import read_json, write_json, writing_folder

CLASSES = ("disc", "square", "triangle", "star", "ring", "cross")
GENERATOR = "leandetr data shapes"
SMALLEST_IMAGE = 64
SMALLEST_RADIUS = 9.0  # pixels
LARGEST_RADIUS = 0.48  # of the image's shorter side
OVERSAMPLING = 4  # outlines are drawn this much larger and scaled down, which smooths their edges
LEAST_VISIBLE = 0.6  # of a shape's area; a shape that would hide more of another one, or show less itself, is not placed
ATTEMPTS = 10  # to place a shape


def write_shapes(folder: Path, train: int = 800, val: int = 200, size: tuple[int, int] = (160, 160), seed: int = 0) -> Path:
    """Write `train` and `val` images of `size` (height, width) with their annotations; equal arguments give equal files.

    An image depends on the seed, its split and its number alone. Boxes are the exact bounds of what can be seen of a shape, and
    `area` is the box's. With images of 160 x 160 or more, COCO's small, medium and large objects all occur.

    Returns the folder.

    Raises:
        UserError: no images, images below 64 pixels, or `folder` holds something that this function did not write.
    """
    folder = Path(folder)
    if min(train, val) < 1:
        raise UserError(f"train {train}, val {val}: both splits need at least one image")
    if min(size) < SMALLEST_IMAGE:
        raise UserError(f"size {size[0]} {size[1]}: shapes need images of at least {SMALLEST_IMAGE} x {SMALLEST_IMAGE} pixels")
    _refuse_foreign(folder)
    info = {"description": "synthetic shapes", "generator": GENERATOR, "seed": seed, "size": list(size)}
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, start=1)]
    with writing_folder(folder) as temporary:
        for stream, (split, count) in enumerate({"train": train, "val": val}.items()):
            (temporary / split).mkdir(parents=True)
            images: list[dict[str, Any]] = []
            annotations: list[dict[str, Any]] = []
            for number in range(1, count + 1):
                pixels, objects = draw_scene(np.random.default_rng([seed, stream, number]), size)
                name = f"{number:06d}.jpg"
                Image.fromarray(pixels).save(temporary / split / name, quality=90)
                images.append({"id": number, "file_name": name, "height": size[0], "width": size[1]})
                annotations += [_annotation(len(annotations) + k, number, *thing) for k, thing in enumerate(objects, start=1)]
            coco = {"info": info, "images": images, "annotations": annotations, "categories": categories}
            write_json(temporary / "annotations" / f"instances_{split}.json", coco)
    return folder


def draw_scene(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, list[tuple[int, list[int]]]]:
    """One image (height, width, 3) uint8 and its objects, each a class number and a box [x, y, width, height] in pixels."""
    height, width = size
    palette = rng.uniform(0.15, 0.85, (2, 3))
    scene = _texture(rng, size, 0.65 * palette + 0.35 * palette.mean())
    for _ in range(rng.integers(2, 7)):
        _paint(scene, _clutter(rng, size), rng.random(3, dtype=np.float32))

    owner = np.full(size, -1)
    areas: list[float] = []
    classes: list[int] = []
    wanted = rng.choice(8, p=[0.02, 0.14, 0.2, 0.2, 0.16, 0.12, 0.1, 0.06])
    largest = LARGEST_RADIUS * min(size)
    radii = SMALLEST_RADIUS + (largest - SMALLEST_RADIUS) * rng.uniform(0, 1, wanted) ** 2  # squared: more small ones
    for radius in sorted(radii, reverse=True):  # the largest first, or the others would leave no room for it
        kind = int(rng.integers(len(CLASSES)))
        for _ in range(ATTEMPTS):
            mask, area = _shape(rng, CLASSES[kind], radius, size)
            covered = mask >= 0.5
            left = np.bincount(owner[(owner >= 0) & ~covered], minlength=len(areas))
            if covered.sum() >= LEAST_VISIBLE * area and (left >= LEAST_VISIBLE * np.array(areas)).all():
                owner[covered] = len(areas)
                areas.append(area)
                classes.append(kind)
                _paint(scene, mask, _texture(rng, size, _contrasting(rng, scene[covered].mean(axis=0))))
                break

    slope_y, slope_x = rng.uniform(-0.25, 0.25, 2)
    light = 1 + slope_y * np.linspace(-1, 1, height)[:, None] + slope_x * np.linspace(-1, 1, width)
    noise = rng.uniform(0.01, 0.04) * rng.standard_normal(scene.shape, dtype=np.float32)
    pixels = np.clip(scene * light[..., None].astype(np.float32) + noise, 0, 1)
    return (255 * pixels).round().astype(np.uint8), [(kind, _bounds(owner == k)) for k, kind in enumerate(classes)]


def _shape(rng: np.random.Generator, name: str, radius: float, size: tuple[int, int]) -> tuple[np.ndarray, float]:
    """The coverage (height, width) in [0, 1] of a shape at a random place, and its area in pixels with what lies outside."""
    stretch, angle = math.exp(rng.uniform(-0.25, 0.25)), rng.uniform(0, 2 * math.pi)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    centre = rng.uniform(0, 1, 2) * size[::-1]
    rings = [radius * (ring * [stretch, 1 / stretch]) @ turn + centre for ring in _outline(name)]

    def draw(canvas: ImageDraw.ImageDraw) -> None:
        for ring, fill in zip(rings, (255, 0)):
            canvas.polygon([tuple(point) for point in OVERSAMPLING * ring], fill=fill)

    return _coverage(size, draw), _area(rings[0]) - sum(map(_area, rings[1:]))


def _outline(name: str) -> list[np.ndarray]:
    """Corners (n, 2) of the shape within the unit circle, then those of its hole where it has one."""
    match name:
        case "disc":
            return [_circle(48)]
        case "square":
            return [
                _circle(4) @ np.array([[1, 1], [-1, 1]]) / math.sqrt(2)
            ]  # sides along the axes: stretched, it stays a rectangle
        case "triangle":
            return [_circle(3)]
        case "star":
            return [_circle(10) * np.tile([1.0, 0.42], 5)[:, None]]
        case "ring":
            return [_circle(48), 0.55 * _circle(48)]
        case _:  # the cross: the three corners of one arm's end, at every quarter turn
            corner = np.array([(0.3, 0.3), (0.95, 0.3), (0.95, -0.3)])
            return [np.concatenate([corner @ np.array([[c, s], [-s, c]]) for c, s in ((1, 0), (0, -1), (-1, 0), (0, 1))])]


def _circle(corners: int) -> np.ndarray:
    """(corners, 2) points at equal angles on the unit circle."""
    angles = 2 * math.pi * np.arange(corners) / corners
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _area(corners: np.ndarray) -> float:
    (x, y), (next_x, next_y) = corners.T, np.roll(corners, -1, axis=0).T
    return float(abs((x * next_y - next_x * y).sum()) / 2)


def _coverage(size: tuple[int, int], draw: Callable[[ImageDraw.ImageDraw], None]) -> np.ndarray:
    """(height, width) in [0, 1] of what `draw` draws on a canvas `OVERSAMPLING` times as large."""
    canvas = Image.new("L", (size[1] * OVERSAMPLING, size[0] * OVERSAMPLING))
    draw(ImageDraw.Draw(canvas))
    return np.asarray(canvas.reduce(OVERSAMPLING), dtype=np.float32) / 255


def _clutter(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """The coverage of a line, an arc or some specks: things that are no object."""
    far = OVERSAMPLING * max(size)
    points = rng.uniform(0, far, (2, 2))
    thickness = int(OVERSAMPLING * rng.uniform(1, 4))
    kind, start, span = rng.integers(3), rng.uniform(0, 360), rng.uniform(40, 160)
    spots = points[0] + rng.normal(0, 0.06 * far, (12, 2))

    def draw(canvas: ImageDraw.ImageDraw) -> None:
        if kind == 0:
            canvas.line([tuple(point) for point in points], fill=255, width=thickness)
        elif kind == 1:
            corners = [*points.min(axis=0), *(points.max(axis=0) + 1)]
            canvas.arc(corners, start, start + span, fill=255, width=thickness)
        else:
            for x, y in spots:
                canvas.ellipse([x, y, x + thickness, y + thickness], fill=255)

    return _coverage(size, draw)


def _texture(rng: np.random.Generator, size: tuple[int, int], colours: np.ndarray) -> np.ndarray:
    """(height, width, 3): two colours (2, 3), mixed by a gradient, stripes, checks, dots or clouds."""
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    angle, pitch, phase = rng.uniform(0, math.pi), rng.uniform(5, 20), rng.uniform(0, 2 * math.pi)
    along = (x * math.cos(angle) + y * math.sin(angle)) * (2 * math.pi / pitch) + phase
    across = (y * math.cos(angle) - x * math.sin(angle)) * (2 * math.pi / pitch) + phase
    match rng.integers(5):
        case 0:
            mix = 0.5 + 0.5 * np.sin(along * pitch / (2 * max(size)))
        case 1:
            mix = 0.5 + 0.5 * np.sin(along)
        case 2:
            mix = (np.sin(along) * np.sin(across) > 0).astype(np.float32)
        case 3:
            mix = (np.sin(along) + np.sin(across) > 0.8).astype(np.float32)
        case _:
            grain = rng.uniform(0, 1, [math.ceil(side / pitch) + 1 for side in size]).astype(np.float32)
            mix = np.asarray(Image.fromarray(grain).resize(size[::-1], Image.Resampling.BICUBIC))
    first, second = colours.astype(np.float32)
    return first + mix[..., None] * (second - first)


def _contrasting(rng: np.random.Generator, background: np.ndarray) -> np.ndarray:
    """Two colours (2, 3): of some random pairs the one that stands out most from the colour (3,) behind it."""
    pairs = rng.uniform(0, 1, (4, 2, 3))
    return pairs[np.linalg.norm(pairs - background, axis=2).min(axis=1).argmax()]


def _paint(scene: np.ndarray, mask: np.ndarray, colour: np.ndarray) -> None:
    scene += mask[..., None] * (colour - scene)


def _bounds(mask: np.ndarray) -> list[int]:
    """[x, y, width, height] of the pixels that are set."""
    (y0, y1), (x0, x1) = (np.flatnonzero(mask.any(axis=axis))[[0, -1]].tolist() for axis in (1, 0))
    return [x0, y0, x1 - x0 + 1, y1 - y0 + 1]


def _annotation(number: int, image: int, kind: int, box: list[int]) -> dict[str, Any]:
    area = box[2] * box[3]
    return {"id": number, "image_id": image, "category_id": kind + 1, "bbox": box, "area": area, "iscrowd": 0}


def _refuse_foreign(folder: Path) -> None:
    """Only what `write_shapes` made, and nothing was added to, may be replaced."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    marker = folder / "annotations" / "instances_train.json"
    content = read_json(marker) if marker.is_file() else None
    info = content.get("info") if isinstance(content, dict) else None
    ours = isinstance(info, dict) and info.get("generator") == GENERATOR
    if not ours or {path.name for path in folder.iterdir()} != {"annotations", "train", "val"}:
        raise UserError(f"{folder} exists and is not a set of shapes; name a new folder or remove it")
