"""Disks that are full or read-only, folders and images that vanish, a loader's worker that is killed: one sentence, nothing
half-written, and the same command ends well once it can."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random

import psutil

from torture import fuzz
from torture.fuzz import Row
from torture.jobs import JOBS, Job, Reference, differences, digests, finished, reference, running_for
from torture.outcomes import Ended, traces, verdict

ON_FULL_DISKS = ("compress", "export", "quantize", "data convert", "predict")
ON_READ_ONLY_DISKS = ("compress", "train")
ROOM = 512 << 20  # bytes


def _mounted(out: Path, size: int) -> bool:
    out.mkdir()
    return _done("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", out)


def _changed(out: Path, option: str) -> bool:
    return _done("mount", "-o", f"remount,{option}", out)


def _done(*command: str | Path) -> bool:
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


@contextmanager
def _disk(row: Row, subjects: Path, work: Path, size: int) -> Iterator[Path | None]:
    """A case whose `out` is a disk of so many bytes; None where no disk can be mounted."""
    case = fuzz.copied(subjects, work / f"cases/{row.name}/case")
    mounted = _mounted(case / "out", size)
    if not mounted:
        print(f"{row.name}: left out, no tmpfs can be mounted here")
    try:
        yield case if mounted else None
    finally:
        _done("umount", "-l", case / "out")
        shutil.rmtree(case.parent)


def _once_it_can(found: str, case: Path, job: Job, whole: Reference, option: str) -> str:
    """The verdict of a command that was refused, after the same command on the mended disk."""
    if found != "refused":
        return found
    _changed(case / "out", option)
    ended = finished(job.start(case))
    other = differences(whole.made, digests(case / "out"))
    return found if ended.status == 0 and not other else f"fault: afterwards {ended.status}, {other[:3]}"


def full(name: str, subjects: Path, work: Path, random: Random, tries: int) -> Row:
    """On a disk with less room than the result needs; then with enough."""
    row, job = Row(f"full disk of {name}"), JOBS[name]
    whole = reference(job, subjects, work)
    for _ in range(tries):
        with _disk(row, subjects, work, int(random.uniform(0.01, 0.9) * _bytes(name, subjects))) as case:
            if case is None:
                break
            one = job.start(case)
            row.add(row.name, _once_it_can(_judged(one, finished(one), whole), case, job, whole, f"size={ROOM}"))
    return row


def read_only(name: str, subjects: Path, work: Path, random: Random, tries: int) -> Row:
    """On a disk that is read-only from a random moment on; then it can be written to again."""
    row, job = Row(f"read-only disk of {name}"), JOBS[name]
    whole = reference(job, subjects, work)
    for _ in range(4 * tries):
        if row.counts["tried"] == tries:
            break
        with _disk(row, subjects, work, ROOM) as case:
            if case is None:
                break
            one = job.start(case)
            ended = running_for(one, random.uniform(0.1, 0.9) * whole.seconds)
            while ended is None and not _changed(case / "out", "ro"):  # which fails while a file is being written
                ended = running_for(one, 0.05)
            if ended is None:  # where it was over before, it is tried again
                found = _ended_as_it_may(one, finished(one), whole)  # what is half-written cannot be removed there
                row.add(row.name, _once_it_can(found, case, job, whole, "rw"))
    return row


def _bytes(name: str, subjects: Path) -> float:
    weights = (subjects / "model/model.safetensors").stat().st_size
    return {"data convert": 30e3, "predict": 30e3, "compress": 6 * weights}.get(name, weights)


def meanwhile(what: str, job: Job, subjects: Path, work: Path, random: Random, tries: int) -> Row:
    """Something happens at a random moment of a command, as `HAPPENINGS` has it; where it was too late for it, again."""
    row, whole = Row(what), reference(job, subjects, work)
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
    if workers:  # one, as the system does that is short of memory
        os.kill(workers[0].pid, signal.SIGKILL)
    return bool(workers)


HAPPENINGS: dict[str, Callable[[Path, fuzz.Running], bool]] = {
    "folder removed": folder_removed,
    "images lost": images_lost,
    "worker killed": worker_killed,
}


def _judged(one: fuzz.Running, ended: Ended, whole: Reference) -> str:
    found = _ended_as_it_may(one, ended, whole)
    return (traces(one.before, one.case) or found) if found == "refused" else found


def _ended_as_it_may(one: fuzz.Running, ended: Ended, whole: Reference) -> str:
    """As `verdict`, of a command that takes a while."""
    if ended.status == 0:
        return "ended well"
    return verdict(replace(ended, seconds=ended.seconds - whole.processor), one.arguments)
