"""Pascal VOC's XML, one of boxes an image, and how tools lay such files out.

VOC counts pixels from 1 and names the first and the last one of a box (development kit, section "annotation"): a box covers
[xmin - 1, xmax] x [ymin - 1, ymax] when edges are measured from 0.

`supervision` reads VOC too, but leaves out `difficult`, takes no lists of images and numbers the classes of every folder anew.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from leandetr.data.faults import Faults, Unusable
from leandetr.data.images import same_proportions
from leandetr.data.labelled import (
    Labelled,
    LabelledImage,
    LabelledObject,
    LabelledSet,
    image_files,
    is_hidden,
    read_text,
    refusal,
    sizes_of,
    tracked,
)
from leandetr.data.split_names import ALL, SPLITS, child, split_folders
from leandetr.errors import UserError

# Lists for training, validation and test, the first row whose first two are there. A detector is chosen by its validation AP,
# and what chose it cannot test it.
LISTS = (("train", "val", "test"), ("trainval", "test"), ("train", "test"))
ANNOTATIONS = ("annotations", "annots", "annotation", "xmls", "xml", "labels")  # what tools call the folder of the XML files
IMAGES = ("images", "jpegimages", "imgs", "image")

Pairs = dict[Path, Path]  # image -> XML


def open_voc(folder: Path) -> LabelledSet | None:
    """A folder as Pascal VOC's are; the lists in `ImageSets/Main` are its splits, without lists it is not divided.

    Raises:
        UserError: lists, but not those of two splits, an empty one, or a listed image is missing.
    """
    images, annotations = child(folder, "jpegimages"), child(folder, "annotations")
    if images is None or annotations is None or not (annotations.name == "Annotations" or _has_xml(annotations)):
        return None
    lists = folder / "ImageSets" / "Main"
    if not any(lists.glob("*.txt")):
        return _open_pairs({ALL: (images, annotations)}, [folder])
    names = next((row for row in LISTS if all((lists / f"{name}.txt").is_file() for name in row[:2])), None)
    if names is None:
        raise UserError(
            f"{lists} has neither train.txt and val.txt nor trainval.txt and test.txt; "
            "write the images' names there, one a line, without .jpg"
        )
    files = {path.stem: path for path in image_files(images)}
    splits, said = {}, []
    for split, name in zip(SPLITS, names):
        file = lists / f"{name}.txt"
        if split == "test" and not (file.is_file() and all(stem in files for stem in _listed(file))):
            continue  # VOC's test images are another archive, which few have
        splits[split] = _read_list(file, images, annotations, files)
        if name != split:
            said.append(f"{file.name} lists its {split} images")
    return LabelledSet(tuple(splits), [folder], said, lambda: _read(splits, dict.fromkeys(splits, images)))


def open_voc_pairs(folder: Path) -> LabelledSet | None:
    """Images with XML files that lie beside them, or in a folder of their own, in a folder a split or in one for all."""
    if not folder.is_dir():
        return None
    found: dict[str, tuple[Path, Path]] = {}
    images, annotations = child(folder, *IMAGES), child(folder, *ANNOTATIONS)
    inner = split_folders(annotations) if annotations else {}
    for split, place in (split_folders(images) if images else {}).items():
        if split in inner and _has_xml(inner[split]):
            found[split] = (place, inner[split])
    for split, place in split_folders(folder).items():
        if split not in found and (pair := _pair(place)):
            found[split] = pair
    if not found and (pair := _pair(folder)):
        found[ALL] = pair
    return _open_pairs(found, list({place: None for pair in found.values() for place in pair})) if found else None


def _pair(folder: Path) -> tuple[Path, Path] | None:
    """The folders of the images and of the XML files of one part."""
    images, annotations = child(folder, *IMAGES), child(folder, *ANNOTATIONS)
    for pair in ((images, annotations), (folder, annotations), (folder, folder)):
        pictures, boxes = pair
        if pictures is not None and boxes is not None and _has_xml(boxes) and image_files(pictures, deep=pictures != folder):
            return pictures, boxes
    return None


def _has_xml(folder: Path) -> bool:
    """Whether the first XML file in a folder is an annotation as VOC's are."""
    first = next(_xml_files(folder), None)
    return first is not None and b"<annotation" in first.read_bytes()[:4096]


def _xml_files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*.xml")) if not is_hidden(path))


def _open_pairs(folders: dict[str, tuple[Path, Path]], places: list[Path]) -> LabelledSet:
    """Images and XML files matched by their names; what has no partner is left out, and counted."""
    splits: dict[str, Pairs] = {}
    faults = {split: Faults() for split in folders}
    said = []
    for split, (images, annotations) in folders.items():
        xmls = {path.relative_to(annotations).with_suffix(""): path for path in _xml_files(annotations)}
        files = {path.relative_to(images).with_suffix(""): path for path in image_files(images)}
        splits[split] = {files[stem]: xmls[stem] for stem in files if stem in xmls}
        if alone := [path for stem, path in files.items() if stem not in xmls]:
            said.append(f"{len(alone)} images without an XML file are left out, the first is {alone[0]}")
        for stem, path in xmls.items():
            if stem not in files:
                faults[split].add("XML file without an image", str(path))
    return LabelledSet(
        tuple(splits), places, said, lambda: _read(splits, {split: images for split, (images, _) in folders.items()}, faults)
    )


def _read(splits: dict[str, Pairs], folders: dict[str, Path], faults: dict[str, Faults] | None = None) -> Labelled:
    """The objects of all images, which lie in a folder a split; classes in alphabetical order, as in VOC's own list, those of
    test images alone at the end.

    Body parts, poses and the flags `truncated` and `occluded` are left out, and so are images whose XML does not say what they
    show: unreadable, of another size than the image, with an object without a name.

    Raises:
        UserError: no image has an XML file.
    """
    faults = faults or {split: Faults() for split in splits}
    if lonely := [folders[split] for split, pairs in splits.items() if not pairs]:
        raise UserError(f"no image in {lonely[0]} has the name of an XML file; put both there and name them alike")
    read: dict[str, list[LabelledImage]] = {split: [] for split in splits}
    for split, pairs in splits.items():
        for path, xml in tracked(pairs.items(), split, len(pairs)):
            try:
                read[split].append(_read_image(path, path.relative_to(folders[split]).as_posix(), xml, faults[split]))
            except Unusable as error:
                faults[split].add(error.kind, error.example, image=True)
    by_split = {split: {thing.name for image in images for thing in image.objects} for split, images in read.items()}
    trained = set().union(*(names for split, names in by_split.items() if split != "test"))
    names = sorted(trained) + sorted(by_split.get("test", set()) - trained)
    where = next(iter(next(iter(splits.values())).values())).parent
    nothing = None if names else f"{where} has no object in any listed image; name a folder with labelled images"
    return Labelled(names, read, faults, refusal(read, where) or nothing)


def _listed(file: Path) -> list[str]:
    return list(dict.fromkeys(line.strip() for line in read_text(file).splitlines() if line.strip()))


def _read_list(file: Path, images: Path, annotations: Path, files: dict[str, Path]) -> Pairs:
    names = _listed(file)
    if not names:
        raise UserError(f"{file} lists no images; write their names there, one a line")
    if missing := [name for name in names if name not in files]:
        raise UserError(
            f"{file} lists {len(missing)} names without an image in {images}, the first is {missing[0]}; "
            "restore the images or remove the lines"
        )
    return {files[name]: annotations / f"{name}.xml" for name in names}


def _read_image(path: Path, name: str, xml: Path, faults: Faults) -> LabelledImage:
    """Raises Unusable where it is not known what the image shows, and where."""
    root = _parse(xml)
    size = _frame(root, xml, path)
    things = [(_name(entry, xml), entry) for entry in root.findall("object")]
    objects = [found for thing, entry in things if (found := _object(thing, entry, xml, faults)) is not None]
    return LabelledImage(path, name, size, objects)


def _frame(root: ElementTree.Element, xml: Path, path: Path) -> tuple[int, int]:
    """(height, width) of the XML, in which the boxes were drawn; the image's own where tools wrote none or zeros."""
    stored, upright = sizes_of(path)
    height, width = ((root.findtext(f"size/{side}") or "0").strip() for side in ("height", "width"))
    if not (height.isdecimal() and width.isdecimal() and max(len(height), len(width)) < 10):
        raise Unusable("size is not whole numbers", f"{xml}: {width!r:.20} x {height!r:.20}")
    size = int(height), int(width)
    if min(size) < 1:
        return upright
    if not (same_proportions(size, stored) or same_proportions(size, upright)):
        raise Unusable(
            "size differs from the file", f"{xml}: {width} x {height}, but {path.name} is {upright[1]} x {upright[0]}"
        )
    return size


def _name(entry: ElementTree.Element, xml: Path) -> str:
    name = (entry.findtext("name") or "").strip()
    if not name:
        raise Unusable("object without a name", str(xml))
    return name


def _object(name: str, entry: ElementTree.Element, xml: Path, faults: Faults) -> LabelledObject | None:
    """An object; None where it has no box, which is counted."""
    texts = [(entry.findtext(f"bndbox/{side}") or "").strip() for side in ("xmin", "ymin", "xmax", "ymax")]
    shown = f"{xml}: {name!r}, xmin, ymin, xmax, ymax: {', '.join(text or 'none' for text in texts)}"
    try:
        left, top, right, bottom = (float(text) for text in texts)
    except ValueError:
        left = top = right = bottom = math.nan
    box = (left - 1, top - 1, right - left + 1, bottom - top + 1)
    if not all(map(math.isfinite, box)):
        faults.add("box is not four finite numbers", shown)
        return None
    if min(box[2:]) <= 0:
        faults.add("empty box", shown)
        return None
    return LabelledObject(name, box, (entry.findtext("difficult") or "").strip() == "1")


class _NoDoctype(ElementTree.TreeBuilder):
    """Entities, by which a small file grows to gigabytes or reads other files, can only be declared in a document type."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("it declares a document type, which VOC's files do not have")


def _parse(xml: Path) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(xml.read_bytes(), ElementTree.XMLParser(target=_NoDoctype()))
    except OSError as error:
        raise Unusable("missing XML file", f"{xml}: {error.strerror}") from error
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # LookupError: an encoding that does not exist
        raise Unusable("unreadable XML file", f"{xml}: {error}") from error
