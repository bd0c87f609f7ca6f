"""Kills, signals, and two commands on one folder: the same command ends with the same bytes and the same table."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

from torture import fuzz
from torture.fuzz import Row
from torture.jobs import Job, Reference, differences, digests, finished, reaped, reference, running_for
from torture.outcomes import Ended

SIGNALS = {"kill": (signal.SIGKILL,), "stop": (signal.SIGINT, signal.SIGTERM)}
IN_A_ROW = 12  # at most so many before it may end
PART = 0.4  # of an uninterrupted run that passes at most before the next one: most runs go on many times
SOON = 10.0  # seconds of the processor in which a second command must have ended


def interrupted(
    name: str, job: Job, subjects: Path, work: Path, random: Random, tries: int, signals: Sequence[signal.Signals]
) -> Row:
    """Signals in turn at random moments, some in a row. SIGINT and SIGTERM end it with status 130 or 143 and a line that says
    where. In the end the same command has the same result; a run that ends before its signal is tried again."""
    row, whole = Row(name), reference(job, subjects, work)
    while row.counts["tried"] < tries:
        case, found = fuzz.copied(subjects, work / f"cases/{name}/case"), list[str]()
        for _ in range(random.randint(1, min(IN_A_ROW, tries - row.counts["tried"]))):
            number, one = signals[len(found) % len(signals)], job.start(case)
            if running_for(one, random.uniform(0, PART * whole.seconds)) is not None:
                break
            found.append(_badly_ended(reaped(one, number), number))
        afterwards = _goes_on(job, case, whole)
        for fault in found:
            row.add(f"{name}, {len(found)} in a row", fault or afterwards)
        shutil.rmtree(case.parent)
    return row


def _badly_ended(ended: Ended, number: signal.Signals) -> str:
    last = (ended.told.strip().splitlines() or [""])[-1]
    if number == signal.SIGKILL or ended.status == 0:  # it was over before the signal came
        return ""
    if ended.status == 128 + number and "goes on" in last and "Traceback" not in ended.told:
        return ""
    return f"fault: status {ended.status} after {number.name}, {last[:200]}"


def both(name: str, job: Job, subjects: Path, work: Path, tries: int) -> Row:
    """A command while another works in its folder."""
    row = Row(f"two of {name}")
    while row.counts["tried"] < tries:
        case = fuzz.copied(subjects, work / f"cases/two of {name}/case")
        first = job.start(case)
        while not _is_locked(case / "out/result"):
            if first.ended() is not None:
                raise RuntimeError(f"{name} ends before it has its folder for itself")
            time.sleep(0.001)
        os.kill(first.process, signal.SIGSTOP)  # so that it is not over before the second one comes to the folder
        (case / "stderr").rename(case / "stderr-of-first")
        second = finished(job.start(case))
        last = (second.told.strip().splitlines() or [""])[-1]
        at_once = second.status == 2 and "another command" in last and second.seconds < SOON
        found = "refused" if at_once else f"fault: status {second.status}, {second.seconds:.0f} s, {last[:200]}"
        row.add(f"two of {name}", found)
        reaped(first, signal.SIGKILL)
        shutil.rmtree(case.parent)
    return row


def _is_locked(folder: Path) -> bool:
    """Whether a process has a folder for itself; without taking part, which would itself be in the way."""
    locks = Path("/proc/locks").read_text()
    return folder.exists() and f":{folder.stat().st_ino} " in locks


def _goes_on(job: Job, case: Path, whole: Reference) -> str:
    ended = finished(job.start(case))
    if ended.status != 0:
        return f"fault: status {ended.status} afterwards, {(ended.told.strip().splitlines() or [''])[-1][:200]}"
    if other := differences(whole.made, digests(case / "out")):
        return f"fault: {len(other)} files differ afterwards, {', '.join(other[:3])}"
    return "ended well"
