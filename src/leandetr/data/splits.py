"""The splits of a data set, whichever way it is laid out."""

from functools import cached_property
from pathlib import Path

from leandetr.data.annotations import Split, read_coco
from leandetr.data.coco_places import images_of
from leandetr.data.hub import local
from leandetr.data.labelled import LabelledSet, is_hidden
from leandetr.data.layouts import Recognised, is_detection_data, recognise, say
from leandetr.data.recognised import recognised_annotations
from leandetr.data.split_names import ALL
from leandetr.errors import UserError
from leandetr.inputs import State, file_digest, files_digest


class DataFolder:
    """A data set in any layout of docs/data.md, recognised once: what is made of it later stays as it was found first.

    Args:
        place: a folder, a YOLO YAML file, or a data set of a hub (`hf://OWNER/NAME`), which is fetched. Of a folder that is
            nothing itself the one folder in it that is a data set is read, which is said.
    """

    def __init__(self, place: Path | str) -> None:
        self.place = Path(place)
        self._annotations: dict[str, Path] = {}

    def __str__(self) -> str:
        return str(self.place)

    @cached_property
    def recognised(self) -> Recognised:
        """Raises UserError where there is no such folder, or its layout is not known."""
        place = local(self.place)
        if not place.is_dir() and not (place.is_file() and recognise(place)):
            fault = "is a file" if place.exists() else "does not exist"
            raise UserError(f"{place} {fault}; give the folder that holds annotations/ and train/")
        return recognise(place) or _inner(place)

    @property
    def splits(self) -> tuple[str, ...]:
        """What it has of train, val and test; ("all",) where it is not divided. Raises UserError as `recognised`."""
        return self.recognised.splits

    def split(self, name: str) -> Split:
        """A split; "all" is a set that is not divided.

        Raises:
            UserError: there is no such folder or split, its layout is not known, or it is faulty (the readers say how).
        """
        file, found = self.annotations(name), self.recognised
        if isinstance(found.content, LabelledSet):
            return Split(file, found.place if found.place.is_dir() else found.place.parent, tuple(found.content.places))
        return Split(file, images_of(found.place, name, found.content[name]), (found.place,))

    def annotations(self, name: str) -> Path:
        """The annotations of `split`, whether there are COCO's images or not; sizes of VOC's and YOLO's images are read from
        these. Raises UserError as it does."""
        if name not in self.splits:
            raise UserError(self._lacks(name))
        if name not in self._annotations:
            self._annotations[name] = recognised_annotations(self.recognised, name)
        return self._annotations[name]

    def _lacks(self, name: str) -> str:
        if self.splits == (ALL,):
            return f"{self.place} is not divided into train and val; add --val-fraction 0.2 to divide it"
        mend = ", or add --val-fraction 0.2 to take some of train" if name == "val" else ""
        return f"{self.place} has no {name} split, only {' and '.join(self.splits)}; name its images in the data set{mend}"


def find_split(data: Path | str, split: str) -> Split:
    """As `DataFolder.split`."""
    return DataFolder(data).split(split)


def split_state(name: str, split: Split) -> State:
    """The bytes of a split's annotations, and the names and sizes of its images."""
    names = split.located([str(image.get("file_name")) for image in read_coco(split.annotations)["images"]])
    return {
        f"annotations of {name}": file_digest(split.annotations),
        f"images of {name}": f"{len(names)} {files_digest(split.images, names)}",
    }


def _inner(place: Path) -> Recognised:
    folders = [path for path in sorted(place.iterdir()) if path.is_dir() and not is_hidden(path)]
    inner = [folder for folder in folders if is_detection_data(folder)]
    if len(inner) > 1:
        named = ", ".join(folder.name for folder in inner)
        raise UserError(f"{place} holds several data sets ({named}); name one of these folders")
    found = recognise(inner[0]) if inner else None
    if found is None:
        raise UserError(
            f"{place} has no annotations/instances_train.json; put the boxes there in COCO's format "
            "(docs/data.md has the other layouts that are read)"
        )
    say(f"{place}: the data set is read in {found.place}")
    return found
