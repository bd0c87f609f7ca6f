"""Pascal VOC 2007 / 2012: one XML of boxes an image, and lists of the images of each split.

VOC counts pixels from 1 and names the first and the last one of a box (development kit, section "annotation"): a box covers
[xmin - 1, xmax] x [ymin - 1, ymax] when edges are measured from 0.

`supervision` reads VOC too, but leaves out `difficult`, takes no lists of images and numbers the classes of every folder anew.
"""

import math
from pathlib import Path
from xml.etree import ElementTree

from leandetr.data.images import same_proportions
from leandetr.data.labelled import Labelled, LabelledImage, LabelledObject, image_files, image_sizes, read_text, tracked
from leandetr.errors import UserError

# Lists for training and validation, the first pair that is there. `test` comes after `val`: a detector is chosen by its
# validation AP, and what chose it cannot test it.
LISTS = (("train", "val"), ("trainval", "test"), ("train", "test"))


def is_voc(folder: Path) -> bool:
    """Whether a folder is laid out as Pascal VOC's are."""
    return (folder / "Annotations").is_dir() and (folder / "JPEGImages").is_dir()


def read_voc(folder: Path) -> Labelled:
    """The images of `ImageSets/Main` and their objects; classes in alphabetical order, as in VOC's own list.

    Splits are `train.txt` and `val.txt`; where one is missing, `trainval.txt` and `test.txt`, or `train.txt` and `test.txt`.
    Body parts, poses and the flags `truncated` and `occluded` are left out.

    Raises:
        UserError: no lists, an empty one, a listed image or its XML is missing or broken, an object without a name or a box.
    """
    lists = folder / "ImageSets" / "Main"
    pair = next((pair for pair in LISTS if all((lists / f"{name}.txt").is_file() for name in pair)), None)
    if pair is None:
        raise UserError(
            f"{lists} has neither train.txt and val.txt nor trainval.txt and test.txt; "
            "write the images' names there, one a line, without .jpg"
        )
    files = {path.stem: path for path in image_files(folder / "JPEGImages")}
    train, val = (_read_list(lists / f"{name}.txt", folder, files) for name in pair)
    names = sorted({thing.name for image in train + val for thing in image.objects})
    if not names:
        raise UserError(f"{folder / 'Annotations'} has no object in any listed image; name a folder with labelled images")
    return Labelled(names, train, val)


def _read_list(file: Path, folder: Path, files: dict[str, Path]) -> list[LabelledImage]:
    names = list(dict.fromkeys(line.strip() for line in read_text(file).splitlines() if line.strip()))
    if not names:
        raise UserError(f"{file} lists no images; write their names there, one a line")
    if missing := [name for name in names if name not in files]:
        raise UserError(
            f"{file} lists {missing[0]}, of which there is no image in {folder / 'JPEGImages'}; restore it or remove the line"
        )
    return [_read_image(files[name], folder / "Annotations" / f"{name}.xml") for name in tracked(names, file.stem, len(names))]


def _read_image(path: Path, xml: Path) -> LabelledImage:
    root = _parse(xml)
    objects = [_object(entry, xml) for entry in root.findall("object")]
    return LabelledImage(path, path.name, _frame(root, xml, path), objects)


def _frame(root: ElementTree.Element, xml: Path, path: Path) -> tuple[int, int]:
    """(height, width) of the XML, in which the boxes were drawn; the image's own where tools wrote none or zeros."""
    stored, upright = image_sizes(path)
    height, width = (root.findtext(f"size/{side}", "0").strip() for side in ("height", "width"))
    if not (height.isdecimal() and width.isdecimal()):
        raise UserError(f"{xml} gives the size {width!r} x {height!r}; write whole numbers of pixels")
    size = int(height), int(width)
    if min(size) < 1:
        return upright
    if not (same_proportions(size, stored) or same_proportions(size, upright)):
        raise UserError(
            f"{xml} gives {path.name} the size {width} x {height}, but it is {upright[1]} x {upright[0]}; "
            "correct the XML's size or replace the image"
        )
    return size


def _object(entry: ElementTree.Element, xml: Path) -> LabelledObject:
    name = entry.findtext("name", "").strip()
    if not name:
        raise UserError(f"{xml} has an object without a name; write its class in <name>")
    texts = [entry.findtext(f"bndbox/{side}", "") for side in ("xmin", "ymin", "xmax", "ymax")]
    try:
        left, top, right, bottom = (float(text) for text in texts)
    except ValueError:
        left = top = right = bottom = math.nan
    box = (left - 1, top - 1, right - left + 1, bottom - top + 1)
    if not all(map(math.isfinite, box)) or min(box[2:]) <= 0:
        raise UserError(
            f"{xml}: the <bndbox> of {name!r} (xmin, ymin, xmax, ymax: {', '.join(text.strip() or 'none' for text in texts)}) "
            "is no box; correct it or remove the object"
        )
    return LabelledObject(name, box, entry.findtext("difficult", "").strip() == "1")


class _NoDoctype(ElementTree.TreeBuilder):
    """Entities, by which a small file grows to gigabytes or reads other files, can only be declared in a document type."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("it declares a document type, which VOC's files do not have")


def _parse(xml: Path) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(xml.read_bytes(), ElementTree.XMLParser(target=_NoDoctype()))
    except OSError as error:
        raise UserError(f"cannot read {xml}: {error.strerror}; restore it or remove its name from ImageSets/Main") from error
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # LookupError: an encoding that does not exist
        raise UserError(f"{xml} cannot be read as XML ({error}); write the file again") from error
