"""The data that verbs take."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from leandetr.data.coco import Split, find_split
from leandetr.errors import UserError

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
