"""What is done in a run's folder stays done.

Every step leaves a note under `steps/` with a fingerprint of what it was made from and the state of what it read. A step
whose note still fits, and whose product is still there, is not done again: a run that was killed goes on where it was, and a
run whose recipe, data or weights changed redoes what the change concerns.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.text import Text

from leandetr.errors import Stopped
from leandetr.files import read_json, write_json
from leandetr.inputs import State, changed, digest
from leandetr.training.fit import OutOfTime

TRAINING = "training"  # the kind of step that can stop at any time and go on later


class Made(NamedTuple):
    """What a step made, or what a recipe gave: where it is, the fingerprint of what it was made from, and the state of what
    was read for it."""

    path: Path
    key: str
    state: str


class Step(NamedTuple):
    """A step of a run, done or not. seconds: that it took, or is expected to take; None where nothing tells."""

    name: str
    kind: str
    done: bool
    seconds: float | None
    summary: str


class Ledger:
    """The notes of one run's folder.

    Attributes:
        until: a time of `time.monotonic()`: no step begins that would not be over by then, going by what steps of its kind took
            so far, and a training stops then.
        rehearsing: no step begins at all, and none stops those behind it: `steps` has them all in the end.
        steps: by name, in order.
        worked: how many steps this process did.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.until = math.inf
        self.rehearsing = False
        self.steps: dict[str, Step] = {}
        self.worked = 0
        self.console = Console(stderr=True, highlight=False)

    def step(
        self, name: str, made_from: Any, state: Mapping[str, str], product: Path | None, work: Callable[[], str], kind: str
    ) -> Made:
        """Do `work`, which writes `product`, unless that is there and the step's note says that it is of the same input.

        Raises OutOfTime where the step would not be over in time.
        """
        key, state = fingerprint(made_from), dict(state)
        made = Made(product or self.folder / name, key, digest(sorted(state.items())))
        note = self.folder / "steps" / f"{name}.json"
        before = read_json(note) if note.exists() else {}
        other = changed(before.get("state", state), state)  # notes of leandetr 0.1 have none
        same = before.get("made_from") == key and not other
        if same and "summary" in before and (product is None or product.exists()):
            if "state" not in before and not self.rehearsing:
                write_json(note, before | {"state": state})
            self.steps[name] = Step(name, kind, True, before["seconds"], before["summary"])
            return made
        if self.rehearsing:
            self.steps[name] = Step(name, kind, False, None, "")
            return made
        start = time.monotonic()
        unhurried = kind == TRAINING or self.until == math.inf
        if start >= self.until or (not unhurried and start + (self.expected(kind) or 0) >= self.until):
            raise OutOfTime(name)
        if other and before:
            self.console.print(f"{name} is made again, for what it was made from has changed: {other}", markup=False)
        self._forget(name, same)
        spent = before.get("seconds", 0.0) if same and "summary" not in before else 0.0
        begun = {"name": name, "kind": kind, "made_from": key, "state": state}
        write_json(note, begun | {"seconds": spent})
        self.console.print(Text(name, style="bold"))
        self.worked += 1

        def seconds() -> float:
            return round(spent + time.monotonic() - start, 1)

        try:
            summary = work()
        except OutOfTime:
            write_json(note, begun | {"seconds": seconds()})
            raise
        except KeyboardInterrupt as interrupt:
            raise Stopped(f"stopped in the step {name}; the same command goes on from here", 130) from interrupt
        self.steps[name] = Step(name, kind, True, seconds(), summary)
        write_json(note, begun | {"seconds": self.steps[name].seconds, "summary": summary})
        return made

    def _forget(self, name: str, same: bool) -> None:
        """Remove what other input left; what a kill interrupted is continued instead."""
        if not same:
            (self.folder / "steps" / f"{name}.json").unlink(missing_ok=True)
            if (self.folder / name).is_dir():
                shutil.rmtree(self.folder / name)

    def expected(self, kind: str) -> float | None:
        """Seconds that the longest finished step of this kind took; None where there is none."""
        notes = [read_json(path) for path in (self.folder / "steps").glob("*.json")]
        return max((note["seconds"] for note in notes if note.get("kind") == kind and "summary" in note), default=None)

    def done(self) -> list[dict[str, Any]]:
        """Name, kind, seconds and summary of every finished step."""
        fields = ("name", "kind", "seconds", "summary")
        return [{field: getattr(step, field) for field in fields} for step in self.steps.values() if step.done]


def fingerprint(made_from: Any) -> str:
    """Sixteen hexadecimal digits of settings that JSON can hold."""
    return hashlib.sha256(json.dumps(made_from, sort_keys=True, default=str).encode()).hexdigest()[:16]


def inherited(**made: Made | None) -> State:
    """The states of what a step goes on from."""
    return {name: one.state for name, one in made.items() if one is not None}
