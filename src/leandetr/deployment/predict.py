"""Detections on photographs of any folder, by any runtime: pictures to look at and a file to read."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from leandetr.data.coco import Split, class_map_of
from leandetr.data.images import read_image
from leandetr.deployment.runtime import Runtime
from leandetr.drawing import above, draw
from leandetr.errors import UserError, unknown
from leandetr.evaluation.coco import to_results
from leandetr.files import read_json, write_json, writing
from leandetr.structures import ClassMap, Detections

logger = logging.getLogger(__name__)

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
ABSENT = -1
FORMATS = ("plain", "coco")


def predict_images(
    runtime: Runtime,
    sources: Sequence[Path],
    out: Path,
    threshold: float = 0.3,
    form: str = "plain",
    annotations: Path | None = None,
    pictures: bool = True,
) -> Path:
    """Detect, draw, and write `out`/predictions.json.

    Args:
        runtime: what predicts.
        sources: images, and folders whose images are taken.
        out: folder for the JSON and, with `pictures`, one drawn JPEG an image.
        threshold: of the score, for what is drawn and for the plain file; a COCO file holds every detection, as AP needs them.
        form: "plain" (a list with one entry an image: file, and its detections by class name, score and box (x0, y0, x1, y1) in
            pixels), or "coco" (COCO's results format).
        annotations: COCO JSON whose image ids and category ids (matched by name) a COCO file uses; needed for it.
            Detections of classes that it does not have are left out, and boxes are in the frame of its sizes.

    Files of a folder that are no images are left out with a warning.

    Returns:
        The JSON's path.

    Raises:
        UserError: a named image that cannot be read, no images, an unknown format, an image that `annotations` does not list or
            lists twice, no class that they share with the runtime, or two drawings that would have one name.
    """
    check_format(form, annotations)
    if annotations is not None and form == "coco":
        listed, classes = _listed(annotations), _numbered(runtime.class_map, annotations)
    paths = list(_images(sources))
    named = {path for path in map(Path, sources) if not path.is_dir()}
    if pictures:
        _check_names(paths, out)
    rows: list[Any] = []
    for path in paths:
        entry = _entry(path, listed, annotations) if annotations is not None and form == "coco" else None
        try:
            image = read_image(path, None if entry is None else entry.size)
        except UserError as error:
            if path in named or entry is not None:
                raise
            logger.warning("left out: %s", error)
            continue
        found = runtime.predict(image, threshold=0)
        if entry is not None:
            rows += [row for row in to_results(found, entry.image_id, classes) if row["category_id"] != ABSENT]
        else:
            rows.append({"file": str(path), "detections": _plain(above(found, threshold), runtime.class_map)})
        if pictures:
            with writing(out / f"{path.stem}.jpg") as temporary:
                drawn = draw(image, above(found, threshold), runtime.class_map.names, max(image.size), scores=True)
                drawn.save(temporary, "JPEG", quality=92)
    write_json(out / "predictions.json", rows)
    return out / "predictions.json"


def check_format(form: str, annotations: Path | None) -> None:
    """Raises UserError for an unknown format, and where it needs annotations."""
    if form not in FORMATS:
        raise unknown("format", form, FORMATS)
    if form == "coco" and annotations is None:
        raise UserError("the coco format numbers images as a data set does: name its JSON with --annotations")


def _images(sources: Iterable[Path]) -> Iterator[Path]:
    for source in map(Path, sources):
        if not source.is_dir():
            yield source
            continue
        inside = sorted(path for path in source.iterdir() if path.suffix.lower() in SUFFIXES)
        if not inside:
            raise UserError(f"{source} holds no images ({', '.join(SUFFIXES)}); name a folder that does")
        yield from inside


def _check_names(paths: Sequence[Path], out: Path) -> None:
    """Neither another drawing nor a photograph may be overwritten."""
    drawn: dict[Path, Path] = {}
    photographs = {path.resolve() for path in paths}
    for path in paths:
        picture = (out / f"{path.stem}.jpg").resolve()
        if picture in photographs:
            raise UserError(f"the drawing of {path} would overwrite the photograph {picture}; name another output folder")
        if picture in drawn:
            raise UserError(f"{drawn[picture]} and {path} would both be drawn as {picture}; predict them into two folders")
        drawn[picture] = path


class Listed(NamedTuple):
    """An image as a COCO JSON lists it; its size (height, width) where that is said."""

    parts: tuple[str, ...]
    image_id: int
    size: tuple[int, int] | None


def _listed(annotations: Path) -> dict[str, list[Listed]]:
    """What a COCO JSON lists, by the files' bare names."""
    found: dict[str, list[Listed]] = {}
    try:
        for image in read_json(annotations)["images"]:
            parts = Path(image["file_name"]).parts
            size = (image["height"], image["width"]) if "height" in image and "width" in image else None
            found.setdefault(parts[-1], []).append(Listed(parts, image["id"], size))
    except (KeyError, TypeError, IndexError) as error:
        raise UserError(f"{annotations} is not COCO: it lists no images with id and file_name; name another file") from error
    return found


def _entry(path: Path, listed: Mapping[str, Sequence[Listed]], annotations: Path) -> Listed:
    """The entry with which a photograph's path has most in common, from the file's name backwards."""
    if path.name not in listed:
        raise UserError(f"{annotations} does not list the image {path.name}; leave it out or name its own annotations")
    place = path.resolve().parts[::-1]

    def common(entry: Listed) -> int:
        return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(place, reversed(entry.parts)))))

    best = max(map(common, listed[path.name]))
    found = [entry for entry in listed[path.name] if common(entry) == best]
    if len(found) > 1:
        raise UserError(f"{annotations} lists {len(found)} images that {path} may be; name it by the folder it is listed in")
    return found[0]


def _numbered(classes: ClassMap, annotations: Path) -> ClassMap:
    """The classes with the category ids of a COCO JSON, `ABSENT` for those that it does not have."""
    data = class_map_of(Split(annotations, annotations.parent))
    if not set(classes.names) & set(data.names):
        raise UserError(
            f"{annotations} has none of the model's classes: it has {', '.join(data.names)}, the model "
            f"{', '.join(classes.names)}; name the annotations of data that the model knows"
        )
    number_of = dict(zip(data.names, data.dataset_ids, strict=True))
    return ClassMap(classes.names, tuple(number_of.get(name, ABSENT) for name in classes.names))


def _plain(found: Detections, classes: ClassMap) -> list[dict[str, Any]]:
    rows = zip(found.labels.tolist(), found.scores.tolist(), found.boxes.tolist(), strict=True)
    return [
        {"class": classes.names[label], "score": round(score, 4), "box": [round(side, 1) for side in box]}
        for label, score, box in rows
    ]
