"""`python -m torture`: the table, and exit status 1 where anything is at fault."""

from __future__ import annotations

import argparse
import functools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

from torture import fuzz, interruptions, losses
from torture.jobs import JOBS
from torture.kinds import KINDS

FEWER = 5  # by which moments are fewer for all but the kills of `compress`


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m torture", description=__doc__)
    parser.add_argument("--tries", type=int, default=1000, help="inputs of each kind")
    parser.add_argument("--moments", type=int, default=50, help="kills of compress; a fifth of it for every other interruption")
    parser.add_argument("--seed", type=int, default=0, help="of the first input of each kind; the others follow")
    parser.add_argument("--only", default="", help="rows, separated by commas, with - for spaces")
    parser.add_argument("--jobs", type=int, default=1, help="inputs at a time")
    parser.add_argument("--out", type=Path, help="folder for what is at fault; by default a temporary one")
    given = parser.parse_args()
    work = (given.out or Path(tempfile.mkdtemp(prefix="torture-"))).absolute()
    fuzz.import_all()
    made = work / "subjects"
    if not made.exists():  # by another process: this one has no threads when it forks
        subprocess.run([sys.executable, "-W", "ignore", "-m", "torture.subjects", str(made)], check=True)
    faults = 0
    for name, row in rows(made, work, given).items():
        if not given.only or name.replace(" ", "-") in given.only.split(","):
            begun, found = time.monotonic(), row()
            show(found, time.monotonic() - begun)
            faults += found.counts["faults"]
    print(f"{faults} faults; inputs at fault are in {work / 'faults'}" if faults else "no faults")
    return int(faults > 0)


def rows(subjects: Path, work: Path, given: argparse.Namespace) -> dict[str, Callable[[], fuzz.Row]]:
    """What makes each row of the table."""
    found: dict[str, Callable[[], fuzz.Row]] = {"corpus": functools.partial(fuzz.corpus_again, subjects, work)}
    seeds = range(given.seed, given.seed + given.tries)
    for name, kind in KINDS.items():
        found[name] = functools.partial(fuzz.fuzzed, name, kind, subjects, work, seeds, given.jobs)
    few, random = max(1, given.moments // FEWER), Random(given.seed)
    for name, job in JOBS.items():
        times = given.moments if name == "compress" else few
        found[f"kill {name}"] = functools.partial(interruptions.killed, name, job, subjects, work, random, times)
        found[f"stop {name}"] = functools.partial(interruptions.signalled, name, job, subjects, work, random, few)
    for name in ("compress", "quantize", "predict"):
        found[f"two of {name}"] = functools.partial(interruptions.both, name, JOBS[name], subjects, work, few)
    for name in JOBS:
        found[f"full disk of {name}"] = functools.partial(losses.full, name, subjects, work, random, few)
    for what in losses.HAPPENINGS:
        found[what] = functools.partial(losses.meanwhile, what, losses.TRAIN, subjects, work, random, few)
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
