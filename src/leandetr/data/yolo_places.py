"""Which images the YAML file of a YOLO data set names, and where their labels lie.

`train`, `val` and `test` are a folder, a list of images (.txt), a pattern (`images/*.jpg`) or several of these, relative to
`path` or to the file's own folder. A YAML file that travelled names places of another machine; what is taken in their stead is
said, and nothing is taken for what is written in a way that is not understood.
"""

import glob
import os
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from leandetr.data.file_names import leading_out
from leandetr.data.labelled import SUFFIXES, image_files, is_hidden, read_text
from leandetr.data.split_names import ALIASES, SPLITS, child, split_folders, split_named
from leandetr.errors import UserError

USUAL = {
    "train": ("images/train", "train/images"),
    "val": ("images/val", "val/images", "valid/images"),
    "test": ("images/test", "test/images"),
}


@dataclass
class Part:
    """The images of one split. folders: those named as a whole, in which labels without an image are looked for. lists: the
    text files that name single images."""

    images: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    lists: list[Path] = field(default_factory=list)

    def extend(self, other: "Part") -> None:
        for mine, more in zip((self.images, self.folders, self.lists), (other.images, other.folders, other.lists)):
            mine[:] = dict.fromkeys([*mine, *more])

    def places(self) -> list[Path]:
        """The files and folders that decide what is read."""
        parents = dict.fromkeys(image.parent for image in self.images) if self.lists or not self.folders else {}
        found = [*self.lists, *self.folders, *parents]
        return [*found, *(place for folder in (*self.folders, *parents) for place in labels_of(folder))]


def parts_of(file: Path, content: dict[str, Any], said: list[str]) -> dict[str, Part]:
    """The images that a YAML file's content names for each split; usual folders where it names none.

    said: gets every fallback.

    Raises:
        UserError: something is named that is not there and has no usual folder, or is written in a way that is not understood.
    """
    return {split: part for split in SPLITS if (part := _part(file, content, split, said)) is not None}


def labels_of(images: Path) -> list[Path]:
    """The folders in which labels of a folder's images may lie: the same path with its last `images` become `labels`."""
    lowered = [part.lower() for part in images.parts]
    if "images" not in lowered:
        return []
    place = len(lowered) - 1 - lowered[::-1].index("images")
    found = [Path(*images.parts[:place], name, *images.parts[place + 1 :]) for name in ("labels", "Labels")]
    return list({path.resolve(): path for path in found if path.is_dir()}.values())  # one where case does not count


def label_of(image: Path) -> Path:
    """The label file of an image: in `labels`, or beside it."""
    found = [folder / f"{image.stem}.txt" for folder in labels_of(image.parent)]
    return next((file for file in found if file.is_file()), image.with_suffix(".txt"))


def _part(file: Path, content: dict[str, Any], split: str, said: list[str]) -> Part | None:
    named = _named(content, split)
    base, root = file.parent, content.get("path")
    roots = [base / root, base] if isinstance(root, str) else [base]
    if named is None:
        usual = _usual(base, split)
        if usual is not None:
            said.append(f"{file.name} names no {split} images; those in {usual} are taken")
        return None if usual is None else _folder(usual)
    entries = named if isinstance(named, list) else [named]
    part = Part()
    for entry in entries:
        if not isinstance(entry, str):
            raise UserError(
                f"{file}: {split!r} has {entry!r:.60}, which is no folder, list of images or pattern; write one of these"
            )
        part.extend(_resolve(file, entry, split, roots, said, alone=len(entries) == 1))
    return part


def _named(content: dict[str, Any], split: str) -> Any:
    """What a YAML file names for a split, under any of its names; None where that is nothing."""
    lowered = {key.lower(): value for key, value in content.items() if isinstance(key, str)}
    return next((lowered[alias] for alias in ALIASES[split] if lowered.get(alias) not in (None, "", [])), None)


def _resolve(file: Path, entry: str, split: str, roots: list[Path], said: list[str], alone: bool) -> Part:
    """What one entry names. alone: whether the usual folders may stand for it."""
    text = entry.replace("\\", "/")
    for place in roots:
        found = _read(place / text, roots, said)
        if found is not None:
            if place != roots[0]:
                said.append(f"{file.name}: path {roots[0]} has no {entry}; it is read in the file's own folder")
            return found
    base, parts = file.parent, [part for part in PurePosixPath(text).parts if part not in ("/", "..", ".")]
    for start in range(len(parts)):
        rest = parts[start:]
        place = base.joinpath(*rest)
        # `images` alone would be every split's images: what stands for a folder must itself be named after the split
        if (place.is_dir() and any(split_named(part) == split for part in rest)) or (
            place.suffix == ".txt" and place.is_file()
        ):
            said.append(f"{file.name}: {split} images {entry} are not there; {place} is read")
            if (found := _read(place, roots, said)) is not None:
                return found
    usual = _usual(base, split) if alone and not PurePosixPath(text).suffix and not glob.has_magic(text) else None
    if usual is not None:
        said.append(f"{file.name}: {split} images {entry} are not there; those in {usual} are taken")
        return _folder(usual)
    raise UserError(
        f"{file} names {entry} as {split!r}, and there is no such folder, list or pattern, nor {' or '.join(USUAL[split])} "
        "beside it; correct the name"
    )


def _read(place: Path, roots: list[Path], said: list[str]) -> Part | None:
    """A folder, list, image or pattern; None where there is no such thing."""
    if place.is_dir():
        return _folder(place)
    if place.is_file() and place.suffix.lower() == ".txt":
        return _list(place, roots, said)
    if place.is_file() and place.suffix.lower() in SUFFIXES:
        return Part(images=[place])
    if glob.has_magic(str(place)):
        found = [path for name in sorted(glob.glob(str(place), recursive=True)) if not is_hidden(path := Path(name))]
        files = [path for path in found if path.suffix.lower() in SUFFIXES and path.is_file()]
        part = Part(images=files)
        for folder in () if files else (path for path in found if path.is_dir()):
            part.extend(_folder(folder))
        return part if part.images else None
    return None


def _folder(folder: Path) -> Part:
    return Part(images=image_files(folder), folders=[folder])


def _list(file: Path, roots: list[Path], said: list[str]) -> Part:
    """The images that a text file names, one a line: relative to its own folder, to the roots, or as written elsewhere."""
    lines = list(dict.fromkeys(line.strip().replace("\\", "/") for line in read_text(file).splitlines() if line.strip()))
    if not lines:
        raise UserError(f"{file} lists no images; write their paths there, one a line")
    places = list(dict.fromkeys([file.parent, *roots]))
    images, moved, lost = [], [], []
    for line in lines:
        written = next((place / line for place in places if os.path.isfile(place / line)), None)
        found = written if written is not None and not leading_out([written], places) else None
        if found is None:
            found = _elsewhere(line, places)
            moved.append(line)
        if found is None and written is not None:
            raise UserError(
                f"{file} lists {line}, which is outside of {' and '.join(map(str, places))}; name the folder that holds all "
                "images as `path` in the YAML file, or move them"
            )
        if found is None:
            lost.append(line)
        else:
            images.append(Path(os.path.normpath(found)))
    if lost:
        raise UserError(
            f"{file} lists {len(lost)} images that are not there, the first is {lost[0]}; restore them or remove the lines"
        )
    if len(set(images)) < len(images):
        raise UserError(f"{file} lists images that are one and the same file here, as {moved[0]}; correct the list")
    if moved:
        said.append(
            f"{file.name}: {len(moved)} of {len(lines)} images are not there as written, the first is {moved[0]}; "
            "they are read below the list's own folder"
        )
    return Part(images=images, lists=[file])


def _elsewhere(line: str, places: list[Path]) -> Path | None:
    parts = [part for part in PurePosixPath(line).parts if part not in ("/", "..", ".")]
    rests = (place.joinpath(*parts[start:]) for start in range(1, len(parts)) for place in places)
    return next((path for path in rests if os.path.isfile(path)), None)


def _usual(base: Path, split: str) -> Path | None:
    found = next((folder for name in USUAL[split] if (folder := base / name).is_dir()), None)
    named = split_folders(base).get(split)  # `validate/images`
    return found or (child(named, "images") if named else None)
