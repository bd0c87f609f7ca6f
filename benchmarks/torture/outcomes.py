"""How a command ended, and whether that is how it may."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torture.mutate import OUTSIDE

SECONDS = 10.0  # after which a command hangs
MEMORY = 4e9  # bytes
LONGEST = 2000  # characters of one sentence
OWN = ("out", "home", "cache", "tmp", "stdout", "stderr")  # where a command may write

# Python's own words where PyTorch's handler of a killed worker's signal raises while it forks: the loader says it again
IGNORED = re.compile(r"Exception ignored in: <function .*>\nTraceback")


@dataclass(frozen=True)
class Ended:
    """status: of exit, negative for a signal. seconds, memory (bytes): what it took."""

    status: int
    told: str
    seconds: float = 0.0
    memory: float = 0.0


def verdict(ended: Ended, arguments: list[str]) -> str:
    """ "ended well", "refused", or the fault in words."""
    last = (ended.told.strip().splitlines() or [""])[-1]
    if fault := _broken(ended, last):
        return f"fault: {fault}"
    if ended.status == 0:
        return "ended well"
    listed = ended.status == 1 and arguments[:2] == ["data", "check"]
    sentence = last.startswith("error: ") and 20 < len(last) < LONGEST
    if listed or (ended.status == 2 and (sentence or "Usage: " in ended.told)):
        return "refused"
    return f"fault: status {ended.status} without a sentence, {last[:200]}"


def _broken(ended: Ended, last: str) -> str:
    if ended.seconds > SECONDS:
        return f"hangs, {ended.seconds:.0f} s"
    if ended.memory > MEMORY:
        return f"{ended.memory / 1e9:.1f} GB of memory"
    if ended.status < 0:
        return f"killed by signal {-ended.status}"
    return f"traceback, {last[:200]}" if "Traceback" in IGNORED.sub("", ended.told) else ""


def files_in(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file that no command may touch."""
    found = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        if name.parts[0] not in OWN and (path.is_file() or path.is_symlink()):
            stat = path.lstat()
            found[str(name)] = (stat.st_size, stat.st_mtime_ns)
    return found


def traces(before: Mapping[str, tuple[int, int]], folder: Path) -> str:
    """What a command left that it may not: files outside of its folder or changed ones, temporary names, half of a JSON."""
    outside = [Path(OUTSIDE), *folder.parent.parent.glob("leandetr-torture-outside*")]
    if left := [str(path) for path in outside if path.exists()]:
        return f"fault: wrote {left[0]}"
    now = files_in(folder)
    if other := [name for name in {**before, **now} if before.get(name) != now.get(name)]:
        return f"fault: touched {other[0]}"
    for path in (folder / "out").rglob("*"):
        if path.name.endswith(".tmp"):
            return f"fault: left {path.relative_to(folder)}"
        if path.suffix == ".json" and path.is_file():
            try:
                json.loads(path.read_text())
            except ValueError:
                return f"fault: half-written {path.relative_to(folder)}"
    return ""
