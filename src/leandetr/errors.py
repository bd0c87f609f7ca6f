"""Errors that a user can cause and mend: one sentence, no traceback, exit status 2."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """The message is one sentence that names the file or key at fault and says how to mend it."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that is not one of `known`, with the nearest one.

    >>> str(unknown("scheme", "statik", ["static", "dynamic"]))
    "unknown scheme 'statik': did you mean 'static'? (known: dynamic, static)"
    """
    known = sorted(known)
    near = get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UserError(f"unknown {kind} {name!r}: {hint}(known: {', '.join(known)})")
