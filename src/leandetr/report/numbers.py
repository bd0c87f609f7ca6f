"""Numbers as text: one place decides how each is printed, and the tables only lay the text out."""

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

DASH = "–"


def defined(value: float | None) -> TypeGuard[float]:
    """Whether there is such a number: COCO gives -1 where there is none."""
    return value is not None and math.isfinite(value) and value >= 0


def number(value: float | None, decimals: int, suffix: str = "") -> str:
    """
    >>> number(12.345, 1), number(None, 1), number(-1, 3)
    ('12.3', '–', '–')
    """
    return f"{value:.{decimals}f}{suffix}" if defined(value) else DASH


def accuracy(value: float | None) -> str:
    """An AP from 0 to 1."""
    return number(value, 3)


def milliseconds(value: float | None) -> str:
    """A latency in milliseconds."""
    return number(value, 1)


def millions(value: float | None) -> str:
    """Bytes as megabytes (10^6 bytes), a count as millions."""
    return number(value / 1e6 if defined(value) else None, 2)


def with_spread(mean: float | None, spread: float | None, signed: bool = False) -> str:
    """
    >>> with_spread(0.3, 0.012), with_spread(0.3, None), with_spread(0.02, None, signed=True), with_spread(None, None)
    ('0.300 ±0.012', '0.300', '+0.020', '–')
    """
    if mean is None or not (signed or defined(mean)):
        return DASH
    return (f"{mean:+.3f}" if signed else f"{mean:.3f}") + ("" if spread is None else f" ±{spread:.3f}")


def times(value: float | None, other: float | None) -> str:
    """
    >>> times(5, 20)
    '×0.25'
    """
    return f"×{value / other:.2f}" if defined(value) and defined(other) and other else DASH


def duration(seconds: float) -> str:
    """
    >>> duration(4.26), duration(83), duration(7260)
    ('4.3 s', '1 min 23 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def flat(environment: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A nested mapping as (key, text) lines.

    >>> flat({"cpu": "x", "versions": {"torch": "2.11"}, "threads": [1, 2]})
    [('cpu', 'x'), ('versions torch', '2.11'), ('threads', '1, 2')]
    """
    lines = []
    for key, value in environment.items():
        name = f"{prefix}{str(key).replace('_', ' ')}"
        if isinstance(value, Mapping):
            lines += flat(value, f"{name} ")
        elif isinstance(value, (list, tuple)):
            lines.append((name, ", ".join(map(str, value))))
        else:
            lines.append((name, DASH if value is None else str(value)))
    return lines
