"""The data that verbs take."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from leandetr.data.classification import image_folder_state, is_image_folder
from leandetr.data.coco import Split, find_split, split_state
from leandetr.errors import UserError
from leandetr.inputs import State, weights_state

Data = Path | str | Mapping[str, Split]
NO_DATA = "no data: give --data FOLDER, or --annotations FILE with --images FOLDER"


def split_of(data: Data, split: str) -> Split:
    """A split of a data folder, or of a mapping from split names to (annotations, images).

    Raises UserError where there is no such split.
    """
    if isinstance(data, Mapping):
        if not data:
            raise UserError(NO_DATA)
        if split not in data:
            raise UserError(f"the data has no split {split!r}, only {', '.join(data)}; name its annotations and images too")
        return data[split]
    return find_split(data, split)


def state_of(data: Data, **sources: str | Path | None) -> State:
    """The state of what a training reads: both splits of the data, or the classes' folders, and by what they are to it
    (`teacher`) the files and folders that it starts from."""
    if not isinstance(data, Mapping) and is_image_folder(data):
        state = image_folder_state(data)
    else:
        state = {what: of for split in ("train", "val") for what, of in split_state(split, split_of(data, split)).items()}
    return state | {what: of for name, source in sources.items() for what, of in weights_state(name, source).items()}
