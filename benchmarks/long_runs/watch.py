"""Runs something in a process of its own and looks at its memory all the while."""

from __future__ import annotations

import multiprocessing
import resource
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil

PERIOD = 0.1  # seconds
PARTS = 10


class Memory(threading.Thread):
    """The resident memory of a process, and of its children, in bytes, until it ends or `stop` is called. What processes share
    counts in each.

    samples: (seconds, own, children's).
    """

    def __init__(self, process: int) -> None:
        super().__init__(daemon=True)
        self.process = psutil.Process(process)
        self.samples: list[tuple[float, int, int]] = []
        self._stopped = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._stopped.wait(PERIOD):
            try:
                own, children = self.process.memory_info().rss, self.process.children(recursive=True)
                others = sum(child.memory_info().rss for child in children)
            except psutil.Error:  # one of them has ended
                continue
            self.samples.append((time.monotonic(), own, others))

    def stop(self) -> None:
        self._stopped.set()
        self.join()


@dataclass(frozen=True)
class Used:
    """seconds: of the processor. own, others: peak bytes in each tenth of the time, of the process and of its children."""

    seconds: float
    own: list[int]
    others: list[int]

    def __str__(self) -> str:
        peak = f"{max(self.own) / 1e6:.0f}" + (f" + {max(self.others) / 1e6:.0f}" if any(self.others) else "")
        return f"{self.seconds:8.1f} s  {peak:>12} MB"

    def tenths(self) -> str:
        lines = [" ".join(f"{peak / 1e6:5.0f}" for peak in self.own)]
        if any(self.others):
            lines.append(f"{' '.join(f'{peak / 1e6:5.0f}' for peak in self.others)}  (of what reads images)")
        return "\n".join(f"{'':34} {line}" for line in lines)


def used(memory: Memory, seconds: float) -> Used:
    first, last = memory.samples[0][0], memory.samples[-1][0]
    parts: list[tuple[int, int]] = [(0, 0)] * PARTS
    for at, own, others in memory.samples:
        part = min(PARTS - 1, int(PARTS * (at - first) / max(last - first, PERIOD)))
        parts[part] = max(parts[part][0], own), max(parts[part][1], others)
    own_peaks, other_peaks = zip(*parts, strict=True)
    return Used(seconds, list(own_peaks), list(other_peaks))


def watched(work: Callable[..., Any], *arguments: Any) -> Used:
    """Run `work(*arguments)` in a fresh process. SystemExit where it fails."""
    before = _seconds()
    process = multiprocessing.get_context("spawn").Process(target=work, args=arguments)
    process.start()
    assert process.pid is not None
    memory = Memory(process.pid)
    process.join()
    memory.stop()
    if process.exitcode:
        sys.exit(f"{work.__name__} {arguments} ended with status {process.exitcode}")
    return used(memory, _seconds() - before)


def command(*arguments: str) -> None:
    """`leandetr ...`, in this process."""
    from leandetr import cli

    sys.argv = ["leandetr", *arguments]
    cli.main()


def _seconds() -> float:
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime
