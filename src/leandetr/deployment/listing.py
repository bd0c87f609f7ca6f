"""The images and classes of a COCO JSON, so that predictions are numbered as a data set is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from leandetr.data.coco import Split, class_map_of
from leandetr.errors import UserError
from leandetr.evaluation.coco import to_results
from leandetr.files import read_json
from leandetr.structures import ClassMap, Detections

ABSENT = -1


class Listed(NamedTuple):
    """An image as a COCO JSON lists it; its size (height, width) where that is said."""

    parts: tuple[str, ...]
    image_id: int
    size: tuple[int, int] | None


class Listing:
    """The images and classes of a COCO JSON, as a file in its results format numbers them.

    Raises UserError where it is not COCO, or has none of the classes.
    """

    def __init__(self, annotations: Path, classes: ClassMap) -> None:
        self.annotations = annotations
        self.listed = _listed(annotations)
        self.classes = _numbered(classes, annotations)

    def entry(self, path: Path) -> Listed:
        """Of a photograph. Raises UserError where there is none or more than one."""
        return _entry(path, self.listed, self.annotations)

    def rows(self, entry: Listed, detections: Detections) -> list[dict[str, Any]]:
        """In COCO's results format."""
        return [row for row in to_results(detections, entry.image_id, self.classes) if row["category_id"] != ABSENT]


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
