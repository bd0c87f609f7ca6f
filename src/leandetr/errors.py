"""Errors that a user can cause and mend: one sentence, no traceback, exit status 2."""

from collections.abc import Iterable
from difflib import get_close_matches

MANY = 40  # names beyond which a sentence lists the nearest alone
LONGEST = 300  # characters that a sentence takes of another program's
SIMILARITY = 0.5  # of difflib; what is less like a name is no help


class UserError(Exception):
    """The message is one sentence that names the file or key at fault and says how to mend it."""


class OutOfReach(UserError):
    """What was asked for cannot be had of this detector; a search that asked goes on with something else."""


class Stopped(BaseException):
    """The command was asked to end by a signal, and did in good order; the message says where, `status` is that of its exit."""

    def __init__(self, where: str, status: int) -> None:
        super().__init__(where)
        self.status = status


def reason(error: BaseException) -> str:
    """What a library's error says, in one line that fits into a sentence; its kind where it says nothing.

    >>> reason(ValueError("bad magic\n  number."))
    'bad magic number'
    """
    said = " ".join(str(error).split()).rstrip(".")
    return f"{said[:LONGEST]}..." if len(said) > LONGEST else said or type(error).__name__


def unwritable(place: object, why: object) -> UserError:
    """The error for what a disk does not take.

    >>> str(unwritable("out/model.onnx", "No space left on device"))
    'cannot write out/model.onnx: No space left on device; free some space or name another place'
    """
    return UserError(f"cannot write {place}: {why}; free some space or name another place")


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
