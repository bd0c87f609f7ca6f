"""Validation images taken from a data set that has none."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from leandetr.data.annotations import Split, read_coco
from leandetr.data.cache import cache_folder
from leandetr.data.split_names import ALL
from leandetr.data.splits import DataFolder
from leandetr.errors import UserError
from leandetr.files import read_json, write_json

SPLITS = ("train", "val")


@dataclass(frozen=True)
class Partition:
    """A data set whose images are divided into train and val by a draw.

    data: a folder or YAML file that is not divided, or has training images alone. fraction: of the images that go to val, in
    (0, 1). seed: of the draw, which the same images always follow. group: a regular expression; images in whose file names it
    finds the same (its first group, where it has one) stay together, as the frames of a video must.
    """

    data: Path
    fraction: float
    seed: int = 0
    group: str | None = None

    def split(self, name: str) -> Split:
        """ "train" or "val", whose annotations lie in the user's cache.

        Raises:
            UserError: the data has validation images already, cannot be read, or one part would be empty.
        """
        if name not in SPLITS:
            raise UserError(f"{self.data} is divided into train and val; there is no {name}")
        return self._splits[name]

    @cached_property
    def _splits(self) -> dict[str, Split]:
        """Drawn once, so that all that is done with one `Partition` is done with the same images."""
        whole = self._whole()
        state = [whole.annotations.read_bytes(), str(whole.annotations.resolve()), self.fraction, self.seed, self.group]
        cache = cache_folder(hashlib.sha256(repr(state).encode()).hexdigest()[:32])
        files = {part: cache / f"instances_{part}.json" for part in SPLITS}
        if not all(file.is_file() for file in files.values()):
            for part, coco in self._divided(whole).items():
                write_json(files[part], coco)
        roots = (whole.annotations.parent, *whole.roots)
        return {part: Split(file, whole.images, roots) for part, file in files.items()}

    def write(self, file: Path) -> None:
        """Write down how the images were divided, and which are where."""
        parts = {name: [image["file_name"] for image in read_coco(self.split(name).annotations)["images"]] for name in SPLITS}
        drawn = {"data": str(self.data), "fraction": self.fraction, "seed": self.seed, "group": self.group}
        write_json(file, drawn | parts)

    def _whole(self) -> Split:
        if not 0 < self.fraction < 1:
            raise UserError(f"a validation fraction of {self.fraction} cannot be; give a number between 0 and 1, as 0.2")
        data = DataFolder(self.data)
        if "val" in data.splits:
            raise UserError(f"{self.data} has validation images of its own; leave out --val-fraction")
        return data.split(ALL if ALL in data.splits else "train")

    def _divided(self, whole: Split) -> dict[str, dict[str, Any]]:
        images = read_coco(whole.annotations)["images"]
        groups: dict[str, list[int]] = {}
        for number, image in enumerate(images):
            groups.setdefault(self._group(str(image.get("file_name"))), []).append(number)
        order = np.random.default_rng(self.seed).permutation(sorted(groups)).tolist()
        wanted = max(1, round(self.fraction * len(images)))
        chosen: set[int] = set()
        for name in order:
            if len(chosen) >= wanted:
                break
            chosen.update(groups[name])
        if not 0 < len(chosen) < len(images):
            raise UserError(
                f"{self.data}: {len(images)} images in {len(groups)} groups leave none to train on; give a smaller part, or a "
                "--val-group that tells more images apart"
            )
        kept = {"val": chosen, "train": set(range(len(images))) - chosen}
        coco = read_json(whole.annotations)
        parts = {}
        for part in SPLITS:
            mine = [images[number] for number in sorted(kept[part])]
            ids = {image.get("id") for image in mine}
            annotations = [entry for entry in coco["annotations"] if entry.get("image_id") in ids]
            parts[part] = coco | {"images": mine, "annotations": annotations}
        parts["val"].pop("leandetr", None)  # what was left out is said once, with train
        return parts

    def _group(self, name: str) -> str:
        if self.group is None:
            return name
        try:
            found = re.search(self.group, name)
        except re.error as error:
            raise UserError(f"--val-group {self.group}: {error}; write a regular expression") from error
        if found is None:
            return name
        return found.group(1 if found.re.groups else 0) or name
