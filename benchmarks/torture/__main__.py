"""`python -m torture`: the table, and exit status 1 where anything is at fault."""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from random import Random

from torture import fuzz, interruptions, losses
from torture.jobs import JOBS
from torture.kinds import KINDS

FEWER = 5  # by which moments are fewer for all but the kills of `compress`
ROWS: dict[str, Callable[[], fuzz.Row]] = {}  # what the processes that make them are forked with


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m torture", description=__doc__)
    parser.add_argument("--tries", type=int, default=1000, help="inputs of each kind")
    parser.add_argument("--moments", type=int, default=50, help="kills of compress; a fifth of it for every other interruption")
    parser.add_argument("--seed", type=int, default=0, help="of the first input of each kind; the others follow")
    parser.add_argument("--only", default="", help="rows, separated by commas, with - for spaces")
    parser.add_argument("--jobs", type=int, default=1, help="rows at a time")
    parser.add_argument("--out", type=Path, help="folder for what is at fault; by default a temporary one")
    given = parser.parse_args()
    work = (given.out or Path(tempfile.mkdtemp(prefix="torture-"))).absolute()
    made = work / "subjects"
    if not made.exists():  # by another process: this one has no threads when it forks
        subprocess.run([sys.executable, "-W", "ignore", "-m", "torture.subjects", str(made)], check=True)
    fuzz.import_all(made)
    faults = 0
    ROWS.update(rows(made, work, given))
    asked = [name for name in ROWS if not given.only or name.replace(" ", "-") in given.only.split(",")]
    for found, seconds in done(asked, given.jobs):
        show(found, seconds)
        faults += found.counts["faults"]
    print(f"{faults} faults; inputs at fault are in {work / 'faults'}" if faults else "no faults")
    return int(faults > 0)


def done(names: Iterable[str], jobs: int) -> Iterator[tuple[fuzz.Row, float]]:
    """The rows as they are done, `jobs` at a time, those that wait for kills first: they take longest."""
    first = sorted(names, key=lambda name: name in KINDS)
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("fork")) as processes:
        for one in as_completed([processes.submit(_row, name) for name in first]):
            yield one.result()


def _row(name: str) -> tuple[fuzz.Row, float]:
    begun = time.monotonic()
    try:
        row = ROWS[name]()
    except Exception as error:  # of what tries, not of what is tried: the other rows go on
        row = fuzz.Row(name)
        row.add(name, f"fault: the row itself broke off, {error!r}")
    return row, time.monotonic() - begun


def rows(subjects: Path, work: Path, given: argparse.Namespace) -> dict[str, Callable[[], fuzz.Row]]:
    """What makes each row of the table."""
    found: dict[str, Callable[[], fuzz.Row]] = {"corpus": functools.partial(fuzz.corpus_again, subjects, work)}
    seeds = range(given.seed, given.seed + given.tries)
    for name, kind in KINDS.items():
        found[name] = functools.partial(fuzz.fuzzed, name, kind, subjects, work, seeds)
    few, random = max(1, given.moments // FEWER), Random(given.seed)  # every process has its own copy
    for name, job in JOBS.items():
        for what, signals in interruptions.SIGNALS.items():
            if (what, name) == ("stop", "compress with exports"):
                continue  # eight minutes of a core; `export` alone and `compress` without it are stopped
            times = given.moments if (what, name) == ("kill", "compress") else few
            row = f"{what} {name}"
            found[row] = functools.partial(interruptions.interrupted, row, job, subjects, work, random, times, signals)
    for name in ("compress", "quantize", "predict"):
        found[f"two of {name}"] = functools.partial(interruptions.both, name, JOBS[name], subjects, work, few)
    for name in losses.ON_FULL_DISKS:
        found[f"full disk of {name}"] = functools.partial(losses.full, name, subjects, work, random, few)
    for name in losses.ON_READ_ONLY_DISKS:
        found[f"read-only disk of {name}"] = functools.partial(losses.read_only, name, subjects, work, random, few)
    for what in losses.HAPPENINGS:
        found[what] = functools.partial(losses.meanwhile, what, JOBS["train"], subjects, work, random, few)
    return found


def show(row: fuzz.Row, seconds: float) -> None:
    counts = row.counts
    print(
        f"{row.name:26} tried {counts['tried']:5}  exit 0 {counts['ended well']:5}  refused {counts['refused']:5}  "
        f"faults {counts['faults']:4}  {seconds:6.0f} s",
        flush=True,
    )
    for where, fault in row.faults.items():
        print(f"    {where}: {fault}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
