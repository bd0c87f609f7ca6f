"""The application that the commands are added to, and its entry point."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from io import TextIOWrapper
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from leandetr.errors import Stopped, UserError, unwritable

app = typer.Typer(
    help="Make DETR-family object detectors small and fast, and see what it cost.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
UNWRITABLE = (errno.EROFS, errno.ENOSPC, errno.EDQUOT)  # of a disk, at any moment
STOPPED = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
LONGEST = 1500  # characters of a sentence
#: read by the libraries when a command imports them; importing them here would make `--help` take seconds
QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # of transformers too
    "TOKENIZERS_PARALLELISM": "false",
    "TORCH_LOGS": "-torch",  # errors alone
    "TRANSFORMERS_VERBOSITY": "error",
}
# Names of files and classes are text: square brackets in them are no markup, in tables either.
out_console, err_console = Console(markup=False), Console(stderr=True, markup=False, highlight=False)


def _say_version(asked: bool) -> None:
    if asked:
        out_console.print(version("leandetr"), highlight=False)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", callback=_say_version, is_eager=True)
    ] = False,
) -> None:
    """What `leandetr` takes before a command."""


def _sentence(error: UserError | OSError) -> str | None:
    """What can be mended, of names of thousands of characters the beginning and the mend; None where nothing can."""
    if isinstance(error, OSError):
        if error.errno == errno.ENAMETOOLONG:
            return f"{str(error.filename)[:60]}... is longer than a name can be; give another"
        if error.errno in UNWRITABLE:
            return str(unwritable(error.filename or "to the disk", error.strerror))
        return None
    said = str(error).rpartition("leandetr.errors.UserError: ")[2]  # a loader's worker says its traceback before
    said = " ".join(said.split())
    return said if len(said) <= LONGEST else f"{said[: LONGEST - 400]} ... {said[-400:]}"


def _stopped(number: int) -> Stopped:
    return Stopped(f"{STOPPED[signal.Signals(number)]}; the same command goes on from here", 128 + number)


@contextmanager
def _heeding(came: list[int]) -> Iterator[None]:
    """While the block runs, SIGTERM ends it as an interrupt does: what is half-written is removed. Which came is noted down, as
    a library that is interrupted may take that for a fault of its own work (torch.export does)."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        raise KeyboardInterrupt

    def terminate(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        raise _stopped(number)

    before: dict[int, Any] = {signal.SIGTERM: signal.signal(signal.SIGTERM, terminate)}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not of a process that was started to ignore it
        before[signal.SIGINT] = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main() -> None:
    """Run a command; what the user can mend is one sentence and exit status 2."""
    debug = "--debug" in sys.argv
    came: list[int] = []
    try:
        with _heeding(came):
            _set_up()
            app([argument for argument in sys.argv[1:] if argument != "--debug"])
    except Stopped as stop:
        _end(stop)
    except SystemExit as stop:
        if stop.code == 130:  # typer's answer to an interrupt
            _end(_stopped(signal.SIGINT))
        raise
    except KeyboardInterrupt:  # before typer's first line, or after its last
        _end(_stopped(signal.SIGINT))
    except Exception as error:
        if came and not debug:
            _end(_stopped(came[-1]))
        said = _sentence(error) if isinstance(error, UserError | OSError) else None
        if debug or said is None:
            raise
        err_console.print(f"error: {said}", soft_wrap=True)
        sys.exit(2)


def _set_up() -> None:
    """What libraries may say, and how."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name may hold what a terminal's encoding lacks
    for variable, value in QUIET.items():
        os.environ.setdefault(variable, value)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    warnings.filterwarnings("ignore", module="transformers|torch|timm")
    warnings.filterwarnings("ignore", message="Image size")  # Pillow's of half the size at which it refuses an image


def _end(stop: Stopped) -> NoReturn:
    err_console.print(str(stop), soft_wrap=True)
    sys.exit(stop.status)
