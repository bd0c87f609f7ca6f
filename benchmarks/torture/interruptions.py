"""Kills, signals, and two commands on one folder: the same command ends with the same bytes and the same table."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path
from random import Random

from torture import fuzz
from torture.fuzz import Row
from torture.jobs import Job, Reference, differences, digests, finished, reaped, reference, running_for

IN_A_ROW = 4  # at most so many kills before it may end
SOON = 10.0  # seconds of the processor in which a second command must have ended
BEGUN = 0.2  # seconds in which a command that has made its folder has it for itself


def killed(name: str, job: Job, subjects: Path, work: Path, random: Random, tries: int) -> Row:
    """`kill -9` at random moments, some in a row. A run that ends before its kill is tried again."""
    row, whole = Row(f"kill {name}"), reference(job, subjects, work)
    while row.counts["tried"] < tries:
        case, kills = fuzz.copied(subjects, work / "cases/killed/case"), 0
        for _ in range(random.randint(1, IN_A_ROW)):
            one = job.start(case)
            if running_for(one, random.uniform(0, whole.seconds)) is not None:
                break
            reaped(one, signal.SIGKILL)
            kills += 1
        found = _goes_on(job, case, whole)
        for _ in range(kills):
            row.add(f"kill {name}, {kills} in a row", found)
        shutil.rmtree(case.parent)
    return row


def signalled(name: str, job: Job, subjects: Path, work: Path, random: Random, tries: int) -> Row:
    """SIGINT and SIGTERM in turn: exit 130 or 143, a line that says where, and then as after a kill."""
    row, whole = Row(f"stop {name}"), reference(job, subjects, work)
    while row.counts["tried"] < tries:
        number = (signal.SIGINT, signal.SIGTERM)[row.counts["tried"] % 2]
        case = fuzz.copied(subjects, work / "cases/signalled/case")
        one = job.start(case)
        if running_for(one, random.uniform(0.05, 0.95) * whole.seconds) is None:
            ended = reaped(one, number)
            last = (ended.told.strip().splitlines() or [""])[-1]
            if ended.status != 128 + number or "goes on" not in last or "Traceback" in ended.told:
                found = f"fault: status {ended.status} after signal {int(number)}, {last[:200]}"
            else:
                found = _goes_on(job, case, whole)
            row.add(f"stop {name} by {number.name}", found)
        shutil.rmtree(case.parent)
    return row


def both(name: str, job: Job, subjects: Path, work: Path, tries: int) -> Row:
    """A command while another works in its folder."""
    row = Row(f"two of {name}")
    while row.counts["tried"] < tries:
        case = fuzz.copied(subjects, work / "cases/both/case")
        first = job.start(case)
        while not (case / "out/result/leandetr.json").exists():
            if first.ended() is not None:
                raise RuntimeError(f"{name} ends before it has made its folder")
            time.sleep(0.002)
        time.sleep(BEGUN)
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


def _goes_on(job: Job, case: Path, whole: Reference) -> str:
    ended = finished(job.start(case))
    if ended.status != 0:
        return f"fault: status {ended.status} afterwards, {(ended.told.strip().splitlines() or [''])[-1][:200]}"
    if other := differences(whole.made, digests(case / "out")):
        return f"fault: {len(other)} files differ afterwards, {', '.join(other[:3])}"
    return "ended well"
