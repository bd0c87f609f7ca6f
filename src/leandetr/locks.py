"""A folder is worked on by one command at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from leandetr.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_held: set[int] = set()


def _leave_to_parent() -> None:
    """A loader's worker that outlives a killed command must not keep its folder."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """While the block runs, no other process comes into such a block with `folder`, which exists. Where this one ends, however
    it does, the system lets the next one in. Of processes that were started together the first one speaks for all.

    Raises UserError, at once, where another process works there.
    """
    if fcntl is None or os.environ.get("RANK", "0") != "0":
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    _held.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{folder} is being worked on by another command; wait for its end, or name another folder"
            ) from error
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        _held.discard(descriptor)
        os.close(descriptor)
