"""How far work is, on stderr: a bar where that is a terminal, else a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from leandetr.processes import is_main, processes

SECONDS = 10.0  # between two lines


@contextmanager
def counting(what: str, total: int | None) -> Iterator[Callable[..., None]]:
    """A function to be called after each of `total` steps, or of a number that nobody knows; or with how many are done. Of
    several processes the first one speaks, of its own share."""
    console, state = Console(stderr=True, highlight=False, quiet=not is_main()), processes()
    what += f" of process 1 of {state.num_processes}" if state.num_processes > 1 else ""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left")
    bar = Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal, transient=True)
    task = bar.add_task(what, total=total)
    done, begun = 0, time.monotonic()
    said = begun

    def step(by_now: int | None = None) -> None:
        nonlocal done, said
        done = done + 1 if by_now is None else by_now
        bar.update(task, completed=done)
        if not console.is_terminal and time.monotonic() - said >= SECONDS:
            said = time.monotonic()
            each = f", {1e3 * (said - begun) / max(1, done):.1f} ms each"
            console.print(f"{what}: {done}" + (f" of {total}" if total else "") + each, markup=False, soft_wrap=True)

    with bar:
        yield step
