"""Rows about many items, as detections on photographs are, made block by block: shared among processes, kept as they come, so
that a killed run goes on, and never all in memory.

    FOLDER/.shards-3f2a.../000012.json    the rows of a block, under its name when it is whole

The blocks do not depend on how many processes there are: another number of them goes on with the same shards, and what is
merged is what one process would have written. On several machines all must see the folder.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leandetr.files import read_json, write_text, writing
from leandetr.inputs import digest
from leandetr.processes import blocks, is_main, processes, share, wait

logger = logging.getLogger(__name__)

LARGEST = 128  # items of a shard: what a kill costs at most
PARTS = 64  # that there are at least, so that many processes have their share
BATCH = 8  # the batches that a shard's size is a multiple of


@dataclass
class Made:
    """What all shards came to. items: photographs. found: detections on them. seconds: of one process, added up. size: of the
    merged file, in bytes."""

    items: int = 0
    found: int = 0
    seconds: float = 0.0
    size: int = 0

    def __str__(self) -> str:
        many, of = max(1, self.items), processes().num_processes
        by = f" on each of {of} processes" if of > 1 else ""
        each = f"{1e3 * self.seconds / many:.1f} ms{by} and {self.size / many / 1e3:.2f} kB"
        return f"{self.found} detections on {self.items} images, each image took {each}"


class Shards:
    """The rows of one piece of work.

    Args:
        folder: where the result will be; the shards are beside it while they are needed.
        made_from: all that the rows follow from. Shards that were made from something else are removed.
        count: of the items.

    Attributes:
        blocks: the items of each shard, by their places.
        before: how many shards there were already.
    """

    def __init__(self, folder: Path, made_from: Any, count: int) -> None:
        self.blocks = blocks(count, max(BATCH, min(LARGEST, count // PARTS // BATCH * BATCH)))
        self.folder = Path(folder) / f".shards-{digest([made_from, count])}"
        there = [self._file(number).exists() for number in range(len(self.blocks))]
        self.before = sum(there)
        self._missing = [number for number, is_there in enumerate(there) if not is_there]
        wait()  # before anyone adds to what is there
        if is_main():
            for other in set(Path(folder).glob(".shards-*")) - {self.folder}:
                logger.warning("%s: what was begun with other input is removed, %d shards", folder, len(list(other.iterdir())))
                shutil.rmtree(other)
        self._since = time.monotonic()

    @property
    def mine(self) -> list[int]:
        """The shards that this process has to make."""
        return share(self._missing)

    def keep(self, number: int, rows: Sequence[Any], found: int) -> None:
        """Write a shard. found: how many detections are in its rows."""
        now = time.monotonic()
        made = {"items": len(self.blocks[number]), "found": found, "seconds": now - self._since}
        write_text(self._file(number), json.dumps(made | {"rows": rows}))
        self._since = now

    def merge(self, file: Path, more: Iterable[Any] = ()) -> Made:
        """Once every process is done, write all rows and some more as one JSON list, a row a line, and remove the shards.

        Every process returns what was made; the file is there then.
        """
        wait()
        made = Made()
        if is_main():
            with writing(file) as temporary, open(temporary, "w", encoding="utf-8") as text:
                text.write("[")
                for position, row in enumerate(self._rows(made, more)):
                    text.write(("," if position else "") + "\n" + json.dumps(row))
                text.write("\n]\n")
            made.size = file.stat().st_size
            shutil.rmtree(self.folder, ignore_errors=True)
        wait()
        return made

    def _rows(self, made: Made, more: Iterable[Any]) -> Iterator[Any]:
        for number in range(len(self.blocks)):
            shard = read_json(self._file(number))
            made.items, made.found = made.items + shard["items"], made.found + shard["found"]
            made.seconds += shard["seconds"]
            yield from shard["rows"]
        yield from more

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:06}.json"
