"""Variants trained side by side on one machine: each in a process of its own (`lane.py`), which leaves its steps' notes and
products in the run's folder as a run without lanes does.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import torch

from leandetr.errors import UserError
from leandetr.files import errors_of_writing
from leandetr.machine import VISIBLE

Unit = tuple[str, int]  # a variant and a seed


def work_in_lanes(out: Path, units: Sequence[Unit], lanes: int, until: float) -> Iterator[tuple[Unit, dict[str, str]]]:
    """Work through the units, so many at a time, in order; yields each with the trainings in it that diverged and what was
    said of them. What a process prints is in `lanes/VARIANT-SEED.log`.

    Raises UserError where a process meets one, once those beside it have ended.
    """
    free: queue.SimpleQueue[int] = queue.SimpleQueue()
    for lane in range(lanes):
        free.put(lane)
    running: set[subprocess.Popen] = set()

    def work(unit: Unit) -> dict[str, str]:
        lane = free.get()
        try:
            return _work(out, unit, until, _environment(lane, lanes), running)
        finally:
            free.put(lane)

    pool = ThreadPoolExecutor(lanes)
    try:
        working = {pool.submit(work, unit): unit for unit in units}
        for future in as_completed(working):
            yield working[future], future.result()
    except UserError:
        pool.shutdown(cancel_futures=True)
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in running:
            process.terminate()


def _work(out: Path, unit: Unit, until: float, environment: dict[str, str], running: set[subprocess.Popen]) -> dict[str, str]:
    log = out / "lanes" / f"{unit[0]}-{unit[1]}.log"
    command = [sys.executable, "-m", "leandetr.runs.lane", str(out), unit[0], str(unit[1]), repr(until)]
    with errors_of_writing(log):
        log.parent.mkdir(exist_ok=True)
        with log.open("a", encoding="utf-8") as told:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=told, env=environment, text=True)
            running.add(process)
            said = process.communicate()[0]
            running.discard(process)
    found = json.loads(said.splitlines()[-1]) if process.returncode == 0 else {}
    if "error" in found:
        raise UserError(found["error"])
    if not found:
        raise UserError(f"{unit[0]} with seed {unit[1]} ended with status {process.returncode}; {log} says why")
    return found["diverged"]


def gpus_of(lanes: int) -> list[str]:
    """The GPU of each lane, by the name under which it is visible: the lanes take them in turn. Empty where there is none."""
    named = [name for name in os.environ.get(VISIBLE, "").split(",") if name]
    gpus = named or [str(gpu) for gpu in range(torch.cuda.device_count())]
    return [gpus[lane % len(gpus)] for lane in range(lanes)] if gpus else []


def _environment(lane: int, lanes: int) -> dict[str, str]:
    """Its share of the processor's cores, unless a number of threads is set, and its GPU, which is its only one."""
    threads, gpus = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // lanes))}, gpus_of(lanes)
    return threads | dict(os.environ) | ({VISIBLE: gpus[lane]} if gpus else {})
