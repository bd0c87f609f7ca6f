"""The data that verbs take."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from leandetr.data.annotations import Split
from leandetr.data.classification import image_folder_state, is_image_folder
from leandetr.data.partition import Partition
from leandetr.data.splits import DataFolder, split_state
from leandetr.errors import UserError
from leandetr.inputs import State, weights_state

#: a data folder, one that is recognised, one whose validation images are drawn, or split name -> annotations and images; for a
#: file of results the annotations alone are enough
Data = Path | str | DataFolder | Partition | Mapping[str, Split | Path | str]
NO_DATA = "no data: give --data FOLDER, or --annotations FILE with --images FOLDER"


def opened(data: Data) -> DataFolder | Partition | Mapping[str, Split | Path | str]:
    """The data as an object that is asked again and again, and looks only once at what a folder is."""
    return DataFolder(data) if isinstance(data, Path | str) else data


def split_of(data: Data, split: str) -> Split:
    """Annotations and images of a split. Raises UserError where there is no such split, or no images of it."""
    data = opened(data)
    if not isinstance(data, Mapping):
        return data.split(split)
    found = _named(data, split)
    if not isinstance(found, Split):
        raise UserError(f"{found} is given without its images; name the folder that they are in too")
    return found


def annotations_of(data: Data, split: str) -> Path:
    """The annotations of a split, with images or without. Raises UserError where there is no such split."""
    data = opened(data)
    if isinstance(data, DataFolder):
        return data.annotations(split)
    if isinstance(data, Partition):
        return data.split(split).annotations
    found = _named(data, split)
    return found.annotations if isinstance(found, Split) else Path(found)


def _named(data: Mapping[str, Split | Path | str], split: str) -> Split | Path | str:
    if not data:
        raise UserError(NO_DATA)
    if split not in data:
        raise UserError(f"the data has no split {split!r}, only {', '.join(data)}; name its annotations and images too")
    return data[split]


def state_of(data: Data, **sources: str | Path | None) -> State:
    """The state of what a training reads: both splits of the data, or the classes' folders, and by what they are to it
    (`teacher`) the files and folders that it starts from."""
    data = opened(data)
    if isinstance(data, DataFolder) and is_image_folder(data.place):
        state = image_folder_state(data.place)
    else:
        state = {what: of for split in ("train", "val") for what, of in split_state(split, split_of(data, split)).items()}
    return state | {what: of for name, source in sources.items() for what, of in weights_state(name, source).items()}
