"""The application that the commands are added to, and its entry point."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from importlib.metadata import version
from typing import Annotated

import typer
from rich.console import Console

from leandetr.errors import UserError

app = typer.Typer(
    help="Make DETR-family object detectors small and fast, and see what it cost.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
out_console, err_console = Console(), Console(stderr=True, highlight=False)


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


def main() -> None:
    """Run a command; what the user can mend is one sentence and exit status 2."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("torch").setLevel(logging.ERROR)
    try:
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        warnings.filterwarnings("ignore", module="transformers|torch|timm")
        app(arguments)
    except UserError as error:
        if debug:
            raise
        sentence = (
            str(error).strip().splitlines()[-1].removeprefix("leandetr.errors.UserError: ")
        )  # as a loader's worker says it
        err_console.print(f"error: {sentence}", markup=False, soft_wrap=True)
        sys.exit(2)
    except SystemExit as stop:
        if stop.code == 130:  # typer's answer to an interrupt
            err_console.print("interrupted; the same command goes on from here")
        raise
