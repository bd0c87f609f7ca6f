"""Disks that are full or read-only, folders and images that vanish, a loader's worker that is killed: one sentence, nothing
half-written, and the same command ends well once it can."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import psutil

from torture import fuzz
from torture.fuzz import Row
from torture.jobs import JOBS, Job, Reference, differences, digests, finished, reference, running_for
from torture.outcomes import Ended, traces, verdict

ON_FULL_DISKS = ("compress", "export", "quantize", "data convert", "predict")
ROOM = 512 << 20  # bytes


def _mounted(out: Path, size: int) -> bool:
    out.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(out)]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def _changed(out: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", str(out)], check=False, capture_output=True)


def full(name: str, subjects: Path, work: Path, random: Random, tries: int) -> Row:
    """On a disk with less room than the result needs; then with enough."""
    row, job = Row(f"full disk of {name}"), JOBS[name]
    whole = reference(job, subjects, work, row.name)
    for _ in range(tries):
        case = fuzz.copied(subjects, work / f"cases/full {name}/case")
        if not _mounted(case / "out", size=int(random.uniform(0.01, 0.9) * _bytes(name, subjects))):
            print(f"{row.name}: left out, no tmpfs can be mounted here")
            break
        try:
            one = job.start(case)
            found = _judged(one, finished(one), whole)
            if found == "refused":
                _changed(case / "out", f"size={ROOM}")
                ended = finished(job.start(case))
                other = differences(whole.made, digests(case / "out"))
                found = found if ended.status == 0 and not other else f"fault: afterwards {ended.status}, {other[:3]}"
        finally:
            subprocess.run(["umount", "-l", str(case / "out")], check=False)
        row.add(f"full disk of {name}", found)
        shutil.rmtree(case.parent)
    return row


def _bytes(name: str, subjects: Path) -> float:
    weights = (subjects / "model/model.safetensors").stat().st_size
    return {"data convert": 30e3, "predict": 30e3, "compress": 6 * weights}.get(name, weights)


def meanwhile(what: str, job: Job, subjects: Path, work: Path, random: Random, tries: int) -> Row:
    """Something happens at a random moment of a command, as `HAPPENINGS` has it; where it was too late for it, again."""
    row, whole = Row(what), reference(job, subjects, work, what)
    for _ in range(4 * tries):
        if row.counts["tried"] == tries:
            break
        case = fuzz.copied(subjects, work / f"cases/{what}/case")
        one = job.start(case)
        ended = running_for(one, random.uniform(0.1, 0.9) * whole.seconds)
        happened = ended is None and HAPPENINGS[what](case, one)
        one.before.clear()
        one.before.update(fuzz.files_in(case))  # what is gone, is
        ended = ended or finished(one)
        if happened:
            row.add(what, _judged(one, ended, whole))
        shutil.rmtree(case.parent)
    return row


def folder_removed(case: Path, _: fuzz.Running) -> bool:
    if not (case / "out").exists():
        return False
    shutil.rmtree(case / "out", ignore_errors=True)
    return True


def images_lost(case: Path, _: fuzz.Running) -> bool:
    for file in (case / "coco/train").iterdir():
        file.unlink()
    return True


def worker_killed(_: Path, one: fuzz.Running) -> bool:
    workers = psutil.Process(one.process).children()
    for worker in workers:
        os.kill(worker.pid, signal.SIGKILL)
    return bool(workers)


HAPPENINGS: dict[str, Callable[[Path, fuzz.Running], bool]] = {
    "folder removed": folder_removed,
    "images lost": images_lost,
    "worker killed": worker_killed,
}


def _judged(one: fuzz.Running, ended: Ended, whole: Reference) -> str:
    if ended.status == 0:
        return "ended well"
    found = verdict(replace(ended, seconds=ended.seconds - whole.processor), one.arguments)
    return found if found.startswith("fault") else traces(one.before, one.case) or found
