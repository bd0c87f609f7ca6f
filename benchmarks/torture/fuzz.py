"""Runs hostile inputs, each in a forked process of its own, which has all libraries imported already: milliseconds a command.

A fault leaves its folder's changed files and arguments under `faults/`, from where `replayed` runs it again.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import re
import resource
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from torture.kinds import Kind
from torture.outcomes import OWN, Ended, files_in, traces, verdict

CORPUS = Path(__file__).parent / "corpus"
PATIENCE = 60.0  # seconds by the clock after which a command that waits is killed; what it computes counts by the processor's
CEILING = 8 << 30  # bytes that the system gives a command, so that a fault does not cost the machine


@dataclass
class Row:
    """Counts of one kind of trouble. faults: the last that went wrong, by where to find it."""

    name: str
    counts: Counter[str] = field(default_factory=Counter)
    faults: dict[str, str] = field(default_factory=dict)

    def add(self, where: str, verdict: str) -> None:
        self.counts["tried"] += 1
        if verdict.startswith("fault"):
            self.counts["faults"] += 1
            self.faults[where] = verdict.removeprefix("fault: ")
        else:
            self.counts[verdict] += 1


def import_all(subjects: Path) -> None:
    """What any command imports and has computed once, in the parent of all: most of what a command takes, otherwise."""
    import onnxruntime  # noqa: F401
    import tqdm
    import typer

    from leandetr import cli, transformers  # noqa: F401
    from leandetr.cli.main import app
    from leandetr.deployment.runtimes import open_runtime
    from leandetr.runs import compress  # noqa: F401

    re._MAXCACHE = 10_000  # type: ignore[attr-defined]  # transformers compiles a pattern a weight, twice as many as re keeps
    # before any bar takes a lock: tqdm's own is one for all forks, and one that is killed would hold it for ever
    tqdm.tqdm.set_lock(threading.RLock())
    # made anew by every call otherwise, which takes half of its time
    typer.main.get_command = functools.cache(typer.main.get_command)  # type: ignore[assignment]
    typer.main.get_command(app)
    open_runtime(subjects / "model").predict(subjects / "photo.jpg")
    gc.collect()
    gc.freeze()  # a collection in a fork would write to every page that it shares with this process


def copied(subjects: Path, case: Path) -> Path:
    """All subjects again, as links: mutators replace files and never write into them."""
    shutil.rmtree(case, ignore_errors=True)
    shutil.copytree(subjects, case, copy_function=os.link)
    return case


@dataclass
class Running:
    """A command on its way."""

    process: int
    case: Path
    arguments: list[str]
    before: dict[str, tuple[int, int]]
    start: float

    def ended(self, patience: float = PATIENCE) -> Ended | None:
        """None while it runs in time; then it is killed."""
        late = time.monotonic() - self.start > patience
        process, status, usage = os.wait4(self.process, os.WNOHANG)
        if not process and not late:
            return None
        if not process:
            os.kill(self.process, signal.SIGKILL)
            _, status, usage = os.wait4(self.process, 0)
        seconds = patience if late and not process else usage.ru_utime + usage.ru_stime
        told = (self.case / "stderr").read_text(errors="replace")
        return Ended(os.waitstatus_to_exitcode(status), told, seconds, 1024 * usage.ru_maxrss)


def start(case: Path, arguments: list[str]) -> Running:
    """Run `leandetr` in a fork of this process."""
    before = files_in(case)
    process = os.fork()
    if process:
        return Running(process, case, arguments, before, time.monotonic())
    status = 70
    try:
        os.chdir(case)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # until the command begins
        for name in ("home", "tmp"):
            Path(name).mkdir(exist_ok=True)
        os.environ |= {"HOME": f"{case}/home", "XDG_CACHE_HOME": f"{case}/cache", "TMPDIR": f"{case}/tmp"}
        resource.setrlimit(resource.RLIMIT_DATA, (CEILING, CEILING))
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        status = _called(arguments)
    finally:
        os._exit(status)


def _called(arguments: list[str]) -> int:
    import traceback

    from leandetr import cli

    sys.argv = ["leandetr", *arguments]
    status: object = 0
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        cli.main()
    except SystemExit as stop:
        status = stop.code
    except BaseException:
        traceback.print_exc()
        status = 1
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return status if isinstance(status, int) else int(status is not None)


def fuzzed(name: str, kind: Kind, subjects: Path, work: Path, seeds: range) -> Row:
    """So many inputs of a kind."""
    row = Row(name)
    for seed in seeds:
        case = copied(subjects, work / "cases" / f"{_slug(name)}-{seed}" / "case")
        one = start(case, kind(Random(f"{name} {seed}"), case))
        found = judged(one, _waited(one))
        row.add(f"--only {_slug(name)} --seed {seed}", found)
        _kept(one, found, subjects, work / "faults" / f"{_slug(name)}-{seed}")
        shutil.rmtree(case.parent)
    return row


def _waited(one: Running) -> Ended:
    while (ended := one.ended()) is None:
        time.sleep(0.005)
    return ended


def judged(one: Running, ended: Ended) -> str:
    found = verdict(ended, one.arguments)
    return found if found.startswith("fault") else traces(one.before, one.case) or found


def replayed(entry: Path, subjects: Path, work: Path) -> tuple[str, str]:
    """Run an input of a corpus again: the verdict, and what was told."""
    case = copied(subjects, work / "cases" / entry.name / "case")
    arguments = laid_out(entry, case)
    one = start(case, arguments)
    ended = _waited(one)
    found = judged(one, ended)
    shutil.rmtree(case.parent)
    return found, ended.told


def corpus_again(subjects: Path, work: Path) -> Row:
    """What was at fault once."""
    row = Row("corpus")
    for entry in corpus():
        row.add(entry.name, replayed(entry, subjects, work)[0])
    return row


def laid_out(entry: Path, case: Path) -> list[str]:
    """Put an input of a corpus over the subjects, and return its arguments."""
    from torture.kinds import put

    told = json.loads((entry / "command.json").read_text())
    for file in filter(Path.is_file, (entry / "files").rglob("*")):
        put(case / file.relative_to(entry / "files"), file.read_bytes())
    return told["arguments"]


def corpus() -> Iterator[Path]:
    yield from sorted(path.parent for path in CORPUS.glob("*/command.json"))


def _kept(one: Running, found: str, subjects: Path, place: Path) -> None:
    """The files that are not the subjects', the arguments, and what was told."""
    if not found.startswith("fault"):
        return
    shutil.rmtree(place, ignore_errors=True)
    for path in filter(Path.is_file, one.case.rglob("*")):
        name = path.relative_to(one.case)
        if name.parts[0] not in OWN and not _same(path, subjects / name):
            (place / "files" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place / "files" / name)
    place.mkdir(parents=True, exist_ok=True)
    (place / "command.json").write_text(json.dumps({"arguments": one.arguments, "fault": found}, indent=1) + "\n")
    shutil.copy(one.case / "stderr", place / "stderr")


def _same(path: Path, other: Path) -> bool:
    return other.exists() and os.path.samefile(path, other)


def _slug(name: str) -> str:
    return name.replace(" ", "-")
