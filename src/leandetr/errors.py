"""Errors that a user can cause and mend: one sentence, no traceback, exit status 2."""

from collections.abc import Iterable
from difflib import get_close_matches

MANY = 40  # names beyond which a sentence lists the nearest alone
SIMILARITY = 0.5  # of difflib; what is less like a name is no help


class UserError(Exception):
    """The message is one sentence that names the file or key at fault and says how to mend it."""


def unknown(kind: str, name: object, known: Iterable[object]) -> UserError:
    """The error for a name that is not one of `known`, with the nearest one.

    >>> str(unknown("scheme", "statik", ["static", "dynamic"]))
    "unknown scheme 'statik': did you mean 'static'? (known: dynamic, static)"
    """
    known = sorted(map(str, known))
    near = get_close_matches(str(name), known, n=5, cutoff=SIMILARITY)
    hint = f": did you mean {near[0]!r}?" if near else ""
    listed = f"known: {', '.join(known)}"
    if len(known) > MANY:
        listed = f"the nearest of {len(known)}: {', '.join(near)}" if near else f"none of {len(known)} is like it"
    return UserError(f"unknown {kind} {name!r}{hint} ({listed})")
