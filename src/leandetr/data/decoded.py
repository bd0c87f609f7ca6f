"""Photographs kept decoded, so that an epoch decodes none: as their pixels are, whole and in 8 bits, one after another.

They are kept in full size: the views of "detr" and "ssd" cut before they resize, "flip" turns before it does, and a resize of a
resized image makes other pixels. So a view from here has the bits of one from the file.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from leandetr.data.cache import cache_folder
from leandetr.data.images import read_pixels
from leandetr.errors import UserError
from leandetr.files import writing
from leandetr.inputs import digest
from leandetr.processes import processes, say, wait

Place = Literal["memory", "disk"]


class Decoded:
    """Says first what it takes, and decodes all images on as many threads as there are processors.

    In memory the workers of a loader share the pixels, and every process of a distributed training has its own; on disk all of
    a machine share a file in the user's cache, whose name follows from the images' names, sizes and times.

    Args:
        place: where they are kept.
        paths: the n images. sizes: (n, 2) int64, (height, width) of the frame in which each is read, see `read_image`.

    Raises:
        UserError: they take more than is free, an image cannot be read, or they are to be in memory where processes do not
            inherit it.
    """

    def __init__(self, place: Place, paths: Sequence[Path], sizes: np.ndarray) -> None:
        self.place, self.sizes = place, sizes
        self.ends = np.cumsum(sizes.prod(1) * 3)
        state = [(str(path), (known := path.stat()).st_size, known.st_mtime_ns) for path in paths]
        self.file = cache_folder("decoded") / f"{digest([state, sizes.tolist()])}.pixels"
        self._check()
        if place == "memory":
            self.bytes = np.empty(self.size, np.uint8)  # the array of this object, in place of the file's
            self._fill(self.bytes, paths)
        else:
            if processes().is_local_main_process and not self.file.exists():
                with writing(self.file) as temporary:
                    self._fill(np.memmap(temporary, np.uint8, "w+", shape=(self.size,)), paths)
            wait()

    @property
    def size(self) -> int:
        """In bytes."""
        return int(self.ends[-1])

    @cached_property
    def bytes(self) -> np.ndarray:
        return np.memmap(self.file, np.uint8, "c", shape=(self.size,))  # a change would stay in this process

    def __getitem__(self, index: int) -> Tensor:
        """What `read_pixels` gives of an image: (3, h, w) uint8."""
        height, width = self.sizes[index].tolist()
        end = int(self.ends[index])
        return torch.from_numpy(self.bytes[end - height * width * 3 : end]).view(height, width, 3).permute(2, 0, 1)

    def __getstate__(self) -> dict[str, Any]:
        """Another process opens the file by itself."""
        return {name: value for name, value in vars(self).items() if name != "bytes"}

    def _check(self) -> None:
        said = f"the decoded pixels of {len(self.sizes)} images take {self.size / 1e6:.1f} MB"
        if self.place == "memory":
            if multiprocessing.get_start_method() != "fork":
                raise UserError("training.cache: processes do not inherit memory on this system; set it to disk")
            many, free = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), psutil.virtual_memory().available
            where = f"in the memory of each of {many} processes" if many > 1 else "in memory"
        else:
            many, where = 1, f"in {self.file}"
            self.file.parent.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.file.parent).free
        there = self.place == "disk" and self.file.exists()
        if many * self.size > free and not there:
            other = "disk, or leave it out" if self.place == "memory" else "null"
            raise UserError(f"training.cache: {said} {where}, and {free / 1e6:.1f} MB are free; set it to {other}")
        say(f"{said} {where}" + (", where they are already" if there else f"; {free / 1e6:.1f} MB are free"))

    def _fill(self, array: np.ndarray, paths: Sequence[Path]) -> None:
        def decode(index: int) -> None:
            pixels = read_pixels(paths[index], tuple(self.sizes[index].tolist()))
            end = int(self.ends[index])
            array[end - pixels.numel() : end] = pixels.permute(1, 2, 0).reshape(-1).numpy()

        console = Console(stderr=True)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            done = pool.map(decode, range(len(paths)))
            list(track(done, "decoding", len(paths), console=console, disable=not console.is_terminal, transient=True))
