"""Folders in other layouts to COCO's, with the classes' names kept.

VOC leaves objects marked `difficult` out of its evaluation: found or missed, they count for nothing. They become `iscrowd`
boxes, the one mark that COCO's evaluation ignores (it pays no heed to an `ignore` in the JSON), and keep their own flag beside
it. So they are no training targets, a COCO AP does not count them, and `voc_ap` treats them exactly as VOC does. COCO is more
lenient to detections on such boxes: it divides the overlap by the detection's area, not by that of the union.
"""

import logging
import os
import shutil
from pathlib import Path
from typing import Any, cast

from leandetr.data.labelled import Labelled, LabelledSet, tracked
from leandetr.data.layouts import recognise
from leandetr.data.split_names import ALL
from leandetr.errors import UserError, unknown
from leandetr.files import MARKER, claim_folder, write_json, writing_folder

logger = logging.getLogger(__name__)

DESCRIPTIONS = {
    "voc": "a Pascal VOC folder (Annotations/ and JPEGImages/)",
    "yolo": "a YOLO folder (data.yaml and images/train/)",
    "csv": "a folder of CSV files (train/_annotations.csv)",
    "huggingface": "a folder of Hugging Face tables (data/train-00000-of-00001.parquet)",
}


def convert(source: Path | str, out: Path | str, format: str | None = None) -> Path:
    """Write `out/annotations/instances_{train,val}.json` and the images in `out/{train,val}/`; those of `test` too, and those
    of a set that is not divided as `train`.

    Categories are numbered from 1, in the order of data.yaml for YOLO and of a table's class numbers, else in alphabetical
    order. Boxes are [x, y, width, height] in pixels from the image's corner; objects of a VOC folder also have `difficult`, 0
    or 1, which `iscrowd` repeats.

    Everything is read and judged before anything is written, and the folder gets its name when it is complete. Images are hard
    links where source and out are on one file system, else copies; the source stays as it is. The same source may be
    converted into the same folder again, which replaces it.

    Args:
        source: a folder in any layout of docs/data.md but COCO's, or a YOLO YAML file.
        out: a new or empty folder, or one that this made from the same source.
        format: "voc", "yolo", "csv" or "huggingface"; recognised by default, and only needed where the source has the files of
            several.

    Returns the folder.

    Raises:
        UserError: the layout is not recognised, the source is not to be trusted (the readers say why), or `out` holds other
            things.
    """
    source, out = Path(source), Path(out)
    format, content = _open(source, format)
    labelled = content.read()
    if labelled.refused is not None:
        raise UserError(labelled.refused)
    for said in labelled.said:
        logger.warning("%s: %s", source, said)
    splits = {"train" if split == ALL else split: split for split in labelled.splits}
    made_from = {"source": source.resolve(), "format": format}
    if out.exists():
        claim_folder(out, made_from)
        if foreign := sorted({path.name for path in out.iterdir()} - {MARKER, "annotations", *splits}):
            raise UserError(f"{out} holds {foreign[0]}, which a new conversion would remove; move it or name another folder")
    with writing_folder(out) as temporary:
        claim_folder(temporary, made_from)
        for split, name in splits.items():
            images = labelled.splits[name]
            for image in tracked(images, f"writing {split}", len(images)):
                _link(image.path, temporary / split / image.name)
            coco = coco_of(labelled, name, [image.name for image in images])
            write_json(temporary / "annotations" / f"instances_{split}.json", coco)
            for fault in labelled.faults[name].found():
                logger.warning("%s: %s: %d left out, as %s", split, fault, fault.count, fault.examples[0])
    return out


def _open(source: Path, format: str | None) -> tuple[str, LabelledSet]:
    """The format of a source and what it holds. Raises UserError where it is neither VOC nor YOLO, or both."""
    if format is not None and format not in DESCRIPTIONS:
        raise unknown("format", format, DESCRIPTIONS)
    found = [recognised] if format and (recognised := recognise(source, format)) else []
    if format is None:
        found = [recognised for form in DESCRIPTIONS if (recognised := recognise(source, form)) is not None]
    if len(found) == 1:
        return found[0].form, cast(LabelledSet, found[0].content)  # of VOC and YOLO
    if found:
        forms = " and ".join(recognised.form for recognised in found)
        raise UserError(f"{source} has the files of {forms}; choose one with `leandetr data convert --format`")
    if not source.is_dir() and format is None:
        fault = "is a file" if source.exists() else "does not exist"
        raise UserError(f"{source} {fault}; name the folder of a Pascal VOC or YOLO data set, or the YAML file of a YOLO one")
    if source.is_file():
        raise UserError(f"{source} is a file; name {DESCRIPTIONS[str(format)]}")
    inner = [path for path in sorted(source.iterdir()) if path.is_dir() and any(recognise(path, f) for f in DESCRIPTIONS)]
    mend = f"did you mean {inner[0]}?" if inner else "name the folder that holds them"
    layouts = [format] if format else list(DESCRIPTIONS)
    raise UserError(f"{source} is not {' or '.join(DESCRIPTIONS[layout] for layout in layouts)}; {mend}")


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    source = source.resolve()  # the file itself where the data set is made of symbolic links
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


def coco_of(labelled: Labelled, split: str, file_names: list[str]) -> dict[str, Any]:
    """A COCO dictionary of a split's images under these names; categories are numbered from 1 in the order of the classes. What
    was left out is in it too, where there is such (`annotations.left_out`)."""
    images, faults = labelled.splits[split], labelled.faults[split].as_json()
    number_of = {name: number for number, name in enumerate(labelled.names, start=1)}
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
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
                    "area": thing.box[2] * thing.box[3] if thing.area is None else thing.area,
                    "iscrowd": int(thing.crowd or bool(thing.difficult)),
                    **flag,
                }
            )
    categories = [{"id": number, "name": name} for name, number in number_of.items()]
    coco = {"images": entries, "annotations": annotations, "categories": categories}
    made: dict[str, Any] = {"skipped": faults} if faults else {}
    made |= {"said": labelled.said} if labelled.said else {}
    made |= {} if labelled.refused is None else {"refused": labelled.refused}
    return coco | ({"leandetr": made} if made else {})
