"""Pascal VOC and YOLO folders to COCO's layout, with the classes' names kept.

VOC leaves objects marked `difficult` out of its evaluation: found or missed, they count for nothing. They become `iscrowd`
boxes, the one mark that COCO's evaluation ignores (it pays no heed to an `ignore` in the JSON), and keep their own flag beside
it. So they are no training targets, a COCO AP does not count them, and `voc_ap` treats them exactly as VOC does. COCO is more
lenient to detections on such boxes: it divides the overlap by the detection's area, not by that of the union.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from leandetr.data.labelled import Labelled, LabelledImage, tracked
from leandetr.data.voc import is_voc, read_voc
from leandetr.data.yolo import is_yolo, places_of_yolo, read_yolo
from leandetr.errors import UserError, unknown
from leandetr.files import MARKER, claim_folder, write_json, writing_folder

Reader = tuple[Callable[[Path], bool], Callable[[Path], Labelled], Callable[[Path], list[Path]]]
READERS: dict[str, Reader] = {  # whether it is one, what it holds, where that lies
    "voc": (is_voc, read_voc, lambda folder: [folder]),
    "yolo": (is_yolo, read_yolo, places_of_yolo),
}
DESCRIPTIONS = {
    "voc": "a Pascal VOC folder (Annotations/ and JPEGImages/)",
    "yolo": "a YOLO folder (data.yaml and images/train/)",
}
SPLITS = ("train", "val")


def convert(source: Path | str, out: Path | str, format: str | None = None) -> Path:
    """Write `out/annotations/instances_{train,val}.json` and the images in `out/{train,val}/`.

    Categories are numbered from 1, in alphabetical order for VOC and in that of data.yaml for YOLO. Boxes are [x, y, width,
    height] in pixels from the image's corner; objects of a VOC folder also have `difficult`, 0 or 1, which `iscrowd` repeats.

    Everything is read and judged before anything is written, and the folder gets its name when it is complete. Images are hard
    links where source and out are on one file system, else copies; the source stays as it is. The same source may be
    converted into the same folder again, which replaces it.

    Args:
        source: a Pascal VOC folder (`Annotations/`, `JPEGImages/`, `ImageSets/Main/`; see `read_voc` for the splits), a YOLO
            folder (`data.yaml`, `images/{train,val}/`, `labels/{train,val}/`), or the YAML file of one (see `read_yolo`).
        out: a new or empty folder, or one that this made from the same source.
        format: "voc" or "yolo"; recognised by default, and only needed where the source has the files of both.

    Returns the folder.

    Raises:
        UserError: the layout is not recognised, anything in the source is faulty (the readers say what), or `out` holds other
            things.
    """
    source, out = Path(source), Path(out)
    format = _format(source, format)
    labelled = READERS[format][1](source)
    made_from = {"source": source.resolve(), "format": format}
    if out.exists():
        claim_folder(out, made_from)
        if foreign := sorted({path.name for path in out.iterdir()} - {MARKER, "annotations", *SPLITS}):
            raise UserError(f"{out} holds {foreign[0]}, which a new conversion would remove; move it or name another folder")
    with writing_folder(out) as temporary:
        claim_folder(temporary, made_from)
        for split in SPLITS:
            images = getattr(labelled, split)
            for image in tracked(images, f"writing {split}", len(images)):
                _link(image.path, temporary / split / image.name)
            names = [image.name for image in images]
            write_json(temporary / "annotations" / f"instances_{split}.json", coco_of(images, labelled.names, names))
    return out


def read_labelled(source: Path, format: str | None = None) -> Labelled:
    """A Pascal VOC or YOLO folder; raises what `convert` raises of the source."""
    return READERS[_format(source, format)][1](source)


def places_of(source: Path) -> list[Path]:
    """The files and folders in which what `read_labelled` reads lies."""
    return READERS[_format(source, None)][2](source)


def formats_of(source: Path) -> list[str]:
    """Which of the layouts that `convert` reads a folder or YAML file has."""
    return [format for format, (recognised, *_) in READERS.items() if recognised(source)]


def _format(source: Path, format: str | None) -> str:
    if format is not None and format not in READERS:
        raise unknown("format", format, READERS)
    found = formats_of(source)
    if not found and not source.is_dir():
        fault = "is a file" if source.exists() else "does not exist"
        raise UserError(f"{source} {fault}; name the folder of a Pascal VOC or YOLO data set, or the YAML file of a YOLO one")
    if format in found:
        return format
    if format is None and len(found) == 1:
        return found[0]
    if format is None and found:
        raise UserError(f"{source} has the files of {' and '.join(found)}; choose one with `leandetr data convert --format`")
    if source.is_file():
        raise UserError(f"{source} is a file; name {DESCRIPTIONS[format]}")
    inner = [path for path in sorted(source.iterdir()) if path.is_dir() and formats_of(path)]
    mend = f"did you mean {inner[0]}?" if inner else "name the folder that holds them"
    layouts = [format] if format else list(READERS)
    raise UserError(f"{source} is not {' or '.join(DESCRIPTIONS[layout] for layout in layouts)}; {mend}")


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    source = source.resolve()  # the file itself where the data set is made of symbolic links
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


def coco_of(images: list[LabelledImage], names: list[str], file_names: list[str]) -> dict[str, list[dict[str, Any]]]:
    """A COCO dictionary of images with named boxes; categories are numbered from 1 in the order of `names`."""
    number_of = {name: number for number, name in enumerate(names, start=1)}
    entries, annotations = [], []
    for image_id, (image, file_name) in enumerate(zip(images, file_names, strict=True), start=1):
        height, width = image.size
        entries.append({"id": image_id, "file_name": file_name, "height": height, "width": width})
        for thing in image.objects:
            flag = {} if thing.difficult is None else {"difficult": int(thing.difficult)}
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": number_of[thing.name],
                    "bbox": list(thing.box),
                    "area": thing.box[2] * thing.box[3],
                    "iscrowd": int(bool(thing.difficult)),
                    **flag,
                }
            )
    categories = [{"id": number, "name": name} for name, number in number_of.items()]
    return {"images": entries, "annotations": annotations, "categories": categories}
