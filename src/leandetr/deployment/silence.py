"""What libraries print, Python and C++ alike, kept from the terminal."""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import TextIO


@contextmanager
def silenced() -> Iterator[None]:
    """Nothing that this process writes to its output and error streams arrives meanwhile; what goes wrong is raised. A handler
    that a library gives the root logger meanwhile goes again."""
    handlers = list(logging.root.handlers)
    with ExitStack() as stack:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for number in (1, 2):  # C++ writes there, past Python's streams
            kept = os.dup(number)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, number)
            os.dup2(_nothing().fileno(), number)
        stack.enter_context(redirect_stdout(_nothing()))
        stack.enter_context(redirect_stderr(_nothing()))
        stack.callback(logging.root.handlers.__setitem__, slice(None), handlers)
        yield


@functools.cache
def _nothing() -> TextIO:
    """For good: a library may keep the stream that it found when it was imported."""
    return open(os.devnull, "w", encoding="utf-8")
