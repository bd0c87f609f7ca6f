"""A COCO JSON: its images, classes and boxes as arrays."""

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from leandetr.data.entries import box_of, finite, is_crowd, is_whole, whole
from leandetr.data.faults import Fault, Faults, images_left_out
from leandetr.data.file_names import difference, leading_out, located
from leandetr.data.images import fault_of, image_sizes
from leandetr.errors import UserError
from leandetr.files import read_json
from leandetr.structures import ClassMap

logger = logging.getLogger(__name__)

SECTIONS = ("images", "annotations", "categories")
RELATIVE = 1e-3  # by which boxes in parts of an image may exceed 1: rounding
OVERHANG = 1.0  # pixels by which a box may reach over the image's edge: rounding, not a fault


@dataclass(frozen=True)
class Split:
    """One part of a data set: a COCO JSON and the folder that its file names are relative to.

    roots: folders of the data set besides `images` and that of `annotations`, in which images are sought too and may lie.
    """

    annotations: Path
    images: Path
    roots: tuple[Path, ...] = field(default=(), repr=False, compare=False)

    def located(self, names: Sequence[str]) -> list[str]:
        """Of the JSON's file names those under which the images are, relative to `images`. Raises UserError for a name that
        leads to a file outside of the data set's folders: a data set must not choose which files of a machine are read."""
        places = [self.images, self.annotations.parent, *self.roots]
        found = located(names, self.images, places)
        outside = list(filter(os.path.isfile, leading_out([self.images / name for name in found], places)))
        if outside:
            raise UserError(
                f"{self.annotations} names images outside of {self.images}, {len(outside)} in all, the first is {outside[0]}; "
                "move them there, or name the folder that holds all images with --images"
            )
        return found


@dataclass(frozen=True)
class Annotations:
    """n images and their m boxes, sorted by image. Faulty boxes are left out.

    image_ids: (n,) int64. sizes: (n, 2) int64, (height, width), zeros where the JSON does not say. first: (n + 1,) int64; the
    boxes of image i are `first[i]:first[i + 1]`. boxes: (m, 4) float64, (x, y, width, height) in pixels, as in the JSON. areas:
    (m,) float64, as in the JSON, else width times height. labels: (m,) int64, contiguous ids of `class_map`. crowd: (m,) bool.
    skipped: number of boxes left out. clipped: number of boxes that reach over their image's edge by more than a pixel.
    """

    class_map: ClassMap
    image_ids: np.ndarray
    sizes: np.ndarray
    first: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    skipped: int
    clipped: int
    encoded_names: np.ndarray  # bytes of one width: Python strings would be copied into every loader worker as they are counted

    def file_name(self, index: int) -> str:
        return self.encoded_names[index].decode(errors="surrogatepass")

    def ground_truth(self) -> dict[str, list[dict[str, Any]]]:
        """A COCO dictionary for evaluation, crowd boxes in it.

        Category ids are `class_map.dataset_ids`; boxes are as in the JSON, not cut at the edge; annotations are numbered
        from 1, since COCO's evaluation reads an id of 0 as "unmatched".
        """
        images = [
            {"id": image_id, "file_name": self.file_name(index), "height": height, "width": width}
            for index, (image_id, (height, width)) in enumerate(zip(self.image_ids.tolist(), self.sizes.tolist()))
        ]
        image_ids = np.repeat(self.image_ids, np.diff(self.first))
        category_ids = np.array(self.class_map.dataset_ids)[self.labels]
        columns = (column.tolist() for column in (image_ids, category_ids, self.boxes, self.areas, self.crowd))
        annotations = [
            {"id": number, "image_id": image_id, "category_id": category_id, "bbox": box, "area": area, "iscrowd": int(crowd)}
            for number, (image_id, category_id, box, area, crowd) in enumerate(zip(*columns), start=1)
        ]
        categories = [{"id": i, "name": name} for i, name in zip(self.class_map.dataset_ids, self.class_map.names)]
        return {"images": images, "annotations": annotations, "categories": categories}


def read_annotations(source: Split | Path, class_map: ClassMap | None = None) -> Annotations:
    """Read and judge a COCO JSON. Images that cannot be read are left out with their boxes, which is said.

    Args:
        source: the JSON with its images, whose names and sizes are needed then: a size that the JSON does not give is that of
            the file. Or the JSON alone, which may lack both; boxes are still judged by the sizes that it gives.
        class_map: the classes of a model; the data's are matched to them by name. By default the data's own.

    Raises:
        UserError: not COCO, no images, an id that occurs twice, a size that is not one, a box of a category that is not listed,
            a class that the model does not know, boxes in parts of the image.
    """
    split = source if isinstance(source, Split) else None
    file = source.annotations if isinstance(source, Split) else Path(source)
    coco = read_coco(file)
    for said in coco["said"]:
        logger.warning("%s: %s", file, said)
    own_classes = _class_map(file, coco["categories"])
    images = coco["images"]
    if not images:
        raise UserError(f"{file} lists no images; add some or name another file")
    image_ids = _integers(file, "images", images, "id")
    _once(file, "image id", image_ids)
    sizes = np.array([size_of(image) for image in images], dtype=np.int64)
    if split:
        written = [str(name) for name in _column(file, "images", images, "file_name")]
        names = split.located(written)
        if said := difference(written, names):
            logger.warning("%s: %s", file, said)
        usable = _usable(file, sizes, [split.images / name for name in names])
        lost = set(image_ids[~usable].tolist())
        image_ids, sizes, names = image_ids[usable], sizes[usable], [name for name, kept in zip(names, usable) if kept]
        _complete(sizes, file, [split.images / name for name in names])
    else:
        names, lost = [image.get("file_name", "") for image in images], set()
    annotations = [
        entry for entry in coco["annotations"] if not (is_whole(entry.get("image_id")) and entry["image_id"] in lost)
    ]
    index_of = {image_id: index for index, image_id in enumerate(image_ids.tolist())}
    image = np.array(
        [index_of.get(i, -1) for i in _integers(file, "annotations", annotations, "image_id").tolist()], dtype=np.int64
    )
    labels = _labels(file, _integers(file, "annotations", annotations, "category_id"), own_classes, class_map or own_classes)
    boxes = np.array([box_of(annotation) for annotation in annotations], dtype=np.float64).reshape(-1, 4)
    areas = np.array([_area(annotation, box) for annotation, box in zip(annotations, boxes)], dtype=np.float64)
    crowd = np.array([is_crowd(annotation) for annotation in annotations], dtype=bool)
    if is_relative(boxes):
        raise UserError(
            f"{file} gives its boxes in parts of the image, from 0 to 1; COCO has pixels: multiply by width and height"
        )
    inside, overhanging = place(boxes, np.where(sizes > 0, sizes, np.inf)[image])
    good = inside & (image >= 0)
    order = np.flatnonzero(good)[np.argsort(image[good], kind="stable")]
    result = Annotations(
        class_map=class_map or own_classes,
        image_ids=image_ids,
        sizes=sizes,
        first=np.searchsorted(image[order], np.arange(len(names) + 1)),
        boxes=boxes[order],
        areas=areas[order],
        labels=labels[order],
        crowd=crowd[order],
        skipped=int((~good).sum()) + coco["skipped"],
        clipped=int((good & overhanging).sum()),
        encoded_names=np.array([str(name).encode(errors="surrogatepass") for name in names]),
    )
    if result.skipped or result.clipped:
        faults = f"{result.skipped} faulty boxes are skipped, {result.clipped} are cut at the image's edge"
        logger.warning("%s: %s; `leandetr data check` lists them", file, faults)
    return result


def class_map_of(split: Split) -> ClassMap:
    """The classes of a split, contiguous in the order of their dataset ids. Raises UserError where the JSON is not COCO."""
    return _class_map(split.annotations, read_coco(split.annotations)["categories"])


def read_coco(file: Path) -> dict[str, Any]:
    """The JSON's three lists, as `skipped` how many entries were left out when it was made from another layout, and as `said`
    what else a user should know of that. Raises UserError where a list is missing or holds anything but dictionaries, and
    where what it was made from is not to be trusted."""
    coco = read_json(file)
    made = left_out(coco)
    if made.refused is not None:
        raise UserError(made.refused)
    for section in SECTIONS:
        entries = coco.get(section) if isinstance(coco, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise UserError(
                f"{file} is not COCO: it has no list of {section!r}; write it in COCO's format or name another file"
            )
    skipped = sum(fault.count for fault in made.skipped if not fault.image)
    said = [*made.said, *filter(None, [images_left_out(made.skipped)])]
    return {section: coco[section] for section in SECTIONS} | {"skipped": skipped, "said": said}


@dataclass(frozen=True)
class LeftOut:
    """What was left out when a JSON was made from another layout, what else to say of that, and why it is not to be trusted."""

    skipped: list[Fault]
    said: list[str]
    refused: str | None


def left_out(coco: Any) -> LeftOut:
    """What a JSON says of its making, under `leandetr`: `skipped` as `Faults.as_json` writes it, `said` and `refused`."""
    found = coco.get("leandetr") if isinstance(coco, dict) else None
    found = found if isinstance(found, dict) else {}
    return LeftOut([Fault(**fault) for fault in found.get("skipped", [])], found.get("said", []), found.get("refused"))


def place(boxes: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How boxes (m, 4) (x, y, width, height) lie in images of (m, 2) (height, width).

    Returns two (m,) bool: finite and with an area inside of the image; reaching over its edge by more than a pixel.
    """
    low, high, far = boxes[:, :2], boxes[:, :2] + boxes[:, 2:], sizes[:, ::-1]
    inside = np.isfinite(boxes).all(axis=1) & ((boxes[:, 2:] > 0) & (low < far) & (high > 0)).all(axis=1)
    return inside, ((low < -OVERHANG) | (high > far + OVERHANG)).any(axis=1)


def is_relative(boxes: np.ndarray) -> bool:
    """Whether boxes (m, 4) are in parts of the image in place of pixels: none reaches over 1, and not all are one pixel."""
    finite = boxes[np.isfinite(boxes).all(axis=1)]
    return len(finite) > 0 and (finite[:, :2] + finite[:, 2:] <= 1 + RELATIVE).all() and bool((finite % 1).any())


def size_of(image: dict[str, Any]) -> tuple[int, int]:
    """(height, width) that a JSON gives an image, zeros where it gives none. Tools write 0, null and "96" too."""
    height, width = whole(image.get("height")) or 0, whole(image.get("width")) or 0
    return (height, width) if min(height, width) > 0 else (0, 0)


def _complete(sizes: np.ndarray, file: Path, paths: list[Path]) -> None:
    """Put the files' own sizes where there are zeros; a missing file keeps them."""
    lacking = [index for index in np.flatnonzero(sizes.min(axis=1) < 1) if os.path.isfile(paths[index])]
    if not lacking:
        return
    with ThreadPoolExecutor() as pool:
        sizes[lacking] = [upright for _, upright in pool.map(image_sizes, [paths[index] for index in lacking])]
    logger.warning(
        "%s gives no size of %d images, the first is %s; the files' own are taken", file, len(lacking), paths[lacking[0]]
    )


def _usable(file: Path, sizes: np.ndarray, paths: Sequence[Path]) -> np.ndarray:
    """(n,) bool, which images can be read in the frames of these sizes. The others are said, with a count; missing ones are not
    looked at. Raises UserError where none can be read."""
    frames = [(height, width) for height, width in sizes.tolist()]
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda path, size: fault_of(path, size) if os.path.isfile(path) else None, paths, frames))
    faults = Faults()
    for fault in filter(None, found):
        faults.add(*fault, image=True)
    if said := images_left_out(faults.found()):
        logger.warning("%s: %s", file, said)
    usable = np.array([fault is None for fault in found])
    if not usable.any():
        raise UserError(
            f"{file}: none of its images can be read in the size that it gives, {paths[0]} the first; "
            "`leandetr data check` lists why"
        )
    return usable


def _area(annotation: dict[str, Any], box: np.ndarray) -> float:
    area = finite(annotation.get("area"))
    return box[2] * box[3] if area is None else area


def _class_map(file: Path, categories: list[dict[str, Any]]) -> ClassMap:
    ids = _integers(file, "categories", categories, "id")
    names = np.array([str(name) for name in _column(file, "categories", categories, "name")])
    if not categories:
        raise UserError(f"{file} lists no categories; add the classes of its boxes")
    _once(file, "category id", ids)
    _once(file, "category name", names)
    order = np.argsort(ids)
    return ClassMap(names=tuple(names[order].tolist()), dataset_ids=tuple(ids[order].tolist()))


def _labels(file: Path, categories: np.ndarray, own: ClassMap, target: ClassMap) -> np.ndarray:
    """(m,) category ids of the data -> (m,) contiguous ids of `target`, matched by name."""
    if strangers := [name for name in own.names if name not in target.names]:
        raise UserError(
            f"{file} has classes that the model does not know ({', '.join(strangers)}): the data has {', '.join(own.names)}, "
            f"the model {', '.join(target.names)}; rename the categories or choose another model"
        )
    if (lost := ~np.isin(categories, own.dataset_ids)).any():
        raise UserError(
            f"{file} has a box of category {categories[lost][0]}, which its 'categories' lack; add it or correct the box"
        )
    label_of = np.array([target.names.index(name) for name in own.names], dtype=np.int64)
    return label_of[np.searchsorted(own.dataset_ids, categories)]


def _column(file: Path, section: str, entries: Sequence[dict[str, Any]], key: str) -> list[Any]:
    try:
        return [entry[key] for entry in entries]
    except KeyError:
        _not_coco(file, section, key, "lacks")


def _integers(file: Path, section: str, entries: Sequence[dict[str, Any]], key: str) -> np.ndarray:
    values = _column(file, section, entries, key)
    if not all(is_whole(value) for value in values):
        _not_coco(file, section, key, "has something other than a whole number as")
    return np.array(values, dtype=np.int64)


def _not_coco(file: Path, section: str, key: str, fault: str) -> NoReturn:
    raise UserError(
        f"{file} is not COCO: an entry of {section!r} {fault} {key!r}; correct it (`leandetr data check` says where)"
    )


def _once(file: Path, what: str, values: np.ndarray) -> None:
    unique, counts = np.unique(values, return_counts=True)
    if len(unique) < len(values):
        raise UserError(f"{file}: the {what} {unique[counts > 1][0]} occurs twice; each must be given once")
