"""AP over epochs, a line a row, as an SVG whose colours the page chooses. Each line's name stands at its end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from leandetr.report.numbers import accuracy
from leandetr.report.plots import CHARACTER, LINE, Box, accuracy_axis, axis_names, grid

COLOURS = 6  # classes `line-0` ... of the page; further lines take them again, dashed


def ap_over_epochs(rows: Sequence[Mapping[str, Any]], width: int = 860) -> str:
    """An `<svg>` element, or "" where no row has a curve of two points or more.

    rows: with `name` and `curve`, a list of `epoch` and `ap`; of rows of one name (on several runtimes) the first is drawn.
    """
    curves = {row["name"]: row["curve"] for row in reversed(rows) if len(row["curve"]) > 1}
    curves = {name: curves[name] for name in dict.fromkeys(row["name"] for row in rows) if name in curves}
    if not curves:
        return ""
    frame = Box(46, 16, width - max(map(len, curves)) * CHARACTER - 24, max(360, 56 + LINE * len(curves)))
    last = max(point["epoch"] for curve in curves.values() for point in curve)
    low, high, ap_ticks = accuracy_axis([point["ap"] for curve in curves.values() for point in curve])

    def x(epoch: float) -> float:
        return frame.x0 + epoch / last * (frame.x1 - frame.x0)

    def y(ap: float) -> float:
        return frame.y1 - (ap - low) / (high - low) * (frame.y1 - frame.y0)

    parts = grid(frame, {y(ap): f"{ap:.2f}" for ap in ap_ticks}, {x(epoch): str(epoch) for epoch in epoch_ticks(last)})
    parts += axis_names(frame, "epoch")
    heights = spaced([y(curve[-1]["ap"]) for curve in curves.values()], frame)
    for number, ((name, curve), height) in enumerate(zip(curves.items(), heights)):
        points = [(x(point["epoch"]), y(point["ap"])) for point in curve]
        kind = f"line-{number % COLOURS}" + (" dashed" if number >= COLOURS else "")
        told = f"{name}: AP {accuracy(curve[-1]['ap'])} after epoch {curve[-1]['epoch']}"
        path = "L".join(f"{px:.1f} {py:.1f}" for px, py in points)
        parts.append(f'<path class="{kind}" d="M{path}"><title>{escape(told)}</title></path>')
        end = points[-1]
        parts.append(f'<path class="leader" d="M{end[0]:.1f} {end[1]:.1f}L{frame.x1 + 8:.1f} {height:.1f}"/>')
        parts.append(f'<text class="label" x="{frame.x1 + 12:.1f}" y="{height + 4:.1f}">{escape(name)}</text>')
    about = f"AP over epochs of {', '.join(curves)}; the numbers are in the table"
    box = f"0 0 {width} {frame.y1 + 40:.0f}"
    return f'<svg viewBox="{box}" role="img" aria-label="{escape(about)}">{"".join(parts)}</svg>'


def epoch_ticks(last: int) -> list[int]:
    """
    >>> epoch_ticks(12), epoch_ticks(50)
    ([0, 2, 4, 6, 8, 10, 12], [0, 10, 20, 30, 40, 50])
    """
    step = next(step * 10**power for power in range(9) for step in (1, 2, 5) if last / (step * 10**power) <= 8)
    return list(range(0, last + 1, step))


def spaced(heights: Sequence[float], frame: Box) -> list[float]:
    """The heights of labels, a line apart at least, each as near to its wish as the order of the wishes allows."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    found, above = list(heights), -math.inf
    for index in order:
        found[index] = above = max(heights[index], above + LINE)
    below = frame.y1 + LINE
    for index in reversed(order):  # those that this pushed out of the frame push back
        found[index] = below = min(found[index], below - LINE)
    return found
