"""AP against latency as an SVG whose colours the page chooses, so that it follows a light or a dark theme.

Latency is on a logarithmic axis: a step of the same length is the same speed-up anywhere on it. Each runtime has its own colour
and its own mark, and each point its name, moved aside (with a line back to its point) until no two names overlap. Where
there is no room for all names, the fastest of each accuracy have theirs, and the drawing says how many have none. Of a search,
a line joins the rows of its frontier, and the chosen one has a ring.
"""

import math
from collections.abc import Sequence
from html import escape
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from leandetr.report.numbers import accuracy, defined, milliseconds
from leandetr.report.rows import Row

Array = NDArray[Any]

CHARACTER = 6.4  # width of a character at the labels' 11 pixels, rounded up: names are mostly lower case
LINE = 14  # height of a label
MARK = 5  # half the size of a mark
FEW = 24  # points among which lines back to them are easily followed
MARKS = (
    '<circle r="5"/>',
    '<rect x="-4.5" y="-4.5" width="9" height="9"/>',
    '<path d="M0 -6 L5.5 4.5 L-5.5 4.5 Z"/>',
    '<path d="M0 -6 L6 0 L0 6 L-6 0 Z"/>',
)
MANTISSAS = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9))


class Box(NamedTuple):
    """x0 <= x1, y0 <= y1, in the drawing's units, y downwards."""

    x0: float
    y0: float
    x1: float
    y1: float

    def nearest(self, x: float, y: float) -> tuple[float, float]:
        """The box's point that is nearest to (x, y)."""
        return min(max(x, self.x0), self.x1), min(max(y, self.y0), self.y1)

    def inside(self, other: "Box") -> bool:
        return self.x0 >= other.x0 and self.y0 >= other.y0 and self.x1 <= other.x1 and self.y1 <= other.y1


def accuracy_against_latency(rows: Sequence[Row], width: int = 860, height: int = 420) -> str:
    """An `<svg>` element, or "" where no row has both an AP and a latency."""
    shown = [(row, ms, ap) for row in rows if defined(ap := row["ap"]) and defined(ms := row.get("latency_ms")) and ms > 0]
    if not shown:
        return ""
    rows = [row for row, _, _ in shown]
    runtimes = list(dict.fromkeys(row["runtime"] for row in rows))
    frame = Box(46, 16 + LINE * len(runtimes), width - 12, height - 40)
    slowest, fastest = max(ms for _, ms, _ in shown), min(ms for _, ms, _ in shown)
    left, right = fastest / 1.25, slowest * 1.25
    low, high, ap_ticks = accuracy_axis([ap for _, _, ap in shown])

    def x(latency: float) -> float:
        return frame.x0 + math.log(latency / left) / math.log(right / left) * (frame.x1 - frame.x0)

    def y(ap: float) -> float:
        return frame.y1 - (ap - low) / (high - low) * (frame.y1 - frame.y0)

    axes = grid(frame, {y(ap): f"{ap:.2f}" for ap in ap_ticks}, {x(ms): f"{ms:g}" for ms in latency_ticks(left, right)})
    axes += axis_names(frame, "latency, ms an image (log scale)")
    # Names last and marks before them, so that no line crosses a name.
    lines, marks, names = [], [], []
    points = [(x(ms), y(ap)) for _, ms, ap in shown]
    labels = place_labels(points, [row["name"] for row in rows], frame)
    for row, (px, py), label in zip(rows, points, labels):
        told = f"{row['name']} on {row['runtime']}: AP {accuracy(row['ap'])}, {milliseconds(row['latency_ms'])} ms"
        marks.append(mark(runtimes.index(row["runtime"]), px, py, told))
        if row.get("mark") == "chosen":
            lines.append(f'<circle class="chosen" cx="{px:.1f}" cy="{py:.1f}" r="{2 * MARK}"/>')
        if label is None:
            continue
        near = label.nearest(px, py)
        if math.dist(near, (px, py)) > 2 * MARK:
            lines.append(f'<path class="leader" d="M{px:.1f} {py:.1f}L{near[0]:.1f} {near[1]:.1f}"/>')
        names.append(f'<text class="label" x="{label.x0 + 2:.1f}" y="{label.y1 - 3.5:.1f}">{escape(row["name"])}</text>')
    best = sorted(point for point, row in zip(points, rows) if row.get("mark"))
    if len(best) > 1:
        lines.insert(0, f'<path class="frontier" d="M{"L".join(f"{px:.1f} {py:.1f}" for px, py in best)}"/>')
    for i, runtime in enumerate(runtimes):
        marks.append(mark(i, frame.x0 + 8, 8 + LINE * i, runtime))
        names.append(f'<text class="label" x="{frame.x0 + 20}" y="{12 + LINE * i}">{escape(runtime)}</text>')
    if unnamed := labels.count(None):
        said = f"no room for {unnamed} names: point at a mark, or see the table"
        names.append(f'<text class="axis" x="{frame.x1}" y="{frame.y0 - 4}" text-anchor="end">{said}</text>')
    about = f"AP against latency of {len(rows)} measurements on {', '.join(runtimes)}; the numbers are in the table"
    drawing = "".join(axes + lines + marks + names)
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(about)}">{drawing}</svg>'


def grid(frame: Box, accuracies: dict[float, str], abscissae: dict[float, str]) -> list[str]:
    """A line and its text at every height of `accuracies` and at every abscissa."""
    parts = []
    for y, text in accuracies.items():
        parts.append(f'<path class="grid" d="M{frame.x0} {y:.1f}H{frame.x1}"/>')
        parts.append(f'<text class="tick" x="{frame.x0 - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    for x, text in abscissae.items():
        parts.append(f'<path class="grid" d="M{x:.1f} {frame.y0}V{frame.y1}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{frame.y1 + 15}" text-anchor="middle">{text}</text>')
    return parts


def axis_names(frame: Box, across: str) -> list[str]:
    """AP upwards, `across` below."""
    middle, below = (frame.x0 + frame.x1) / 2, frame.y1 + 34
    return [
        f'<text class="axis" x="{middle}" y="{below}" text-anchor="middle">{across}</text>',
        '<text class="axis" x="4" y="12">AP</text>',
    ]


def mark(runtime: int, x: float, y: float, told: str) -> str:
    """A runtime's mark; `told` is shown when it is pointed at."""
    kind = runtime % len(MARKS)
    return f'<g class="runtime-{kind}" transform="translate({x:.1f} {y:.1f})"><title>{escape(told)}</title>{MARKS[kind]}</g>'


def accuracy_axis(values: Sequence[float]) -> tuple[float, float, list[float]]:
    """The axis's two ends, a fifth of the spread (at least 0.01) beyond the values, and its ticks."""
    margin = max(0.01, (max(values) - min(values)) / 5)
    low, high = max(0.0, min(values) - margin), min(1.0, max(values) + margin)
    step = next(step for step in (0.01, 0.02, 0.05, 0.1, 0.2) if (high - low) / step <= 7)
    return low, high, [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def latency_ticks(low: float, high: float) -> list[float]:
    """Round numbers between two positive ends: the coarsest choice that has four of them, else the finest."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for mantissas in MANTISSAS:
        ticks = [m * 10.0**d for d, m in product(decades, mantissas) if low <= m * 10.0**d <= high]
        if len(ticks) >= 4:
            break
    return ticks


def place_labels(points: Sequence[tuple[float, float]], names: Sequence[str], frame: Box) -> list[Box | None]:
    """Where each name goes: the place nearest to its point, inside the frame, that covers no mark and no name placed before it
    and is nearest to its own mark. Names of `frontier(points)` come first; of these one without such a place goes where it
    covers least, any other is None. Of few points a name may be nearer to another mark: a line leads back to its own."""
    at = np.asarray(points)
    taken = np.concatenate([at - MARK - 1, at + MARK + 1], axis=1)  # (n, 4), as a Box
    best = frontier(points)
    placed: list[Box | None] = [None] * len(points)
    for index in sorted(range(len(points)), key=lambda index: index not in best):
        boxes = _places(at[index], len(names[index]) * CHARACTER + 4, frame)
        away = _distances(boxes, at)  # (places, n)
        own = away[:, index]
        # A name that is nearer to another mark than to its own would be read as that one's.
        others = (at != at[index]).any(axis=1)
        misread = np.asarray((away[:, others] < own[:, None] + MARK).any(axis=1))
        shared = np.minimum(boxes[:, None, 2:], taken[:, 2:]) - np.maximum(boxes[:, None, :2], taken[:, :2])
        covered = np.clip(shared, 0, None).prod(axis=2).sum(axis=1)
        cheapest = np.lexsort((own, misread, covered))[0]
        clear = not covered[cheapest] and not (misread[cheapest] and len(points) > FEW)
        if clear or index in best:
            placed[index] = Box(*boxes[cheapest].tolist())
            taken = np.concatenate([taken, boxes[cheapest][None]])
    return placed


def frontier(points: Sequence[tuple[float, float]]) -> set[int]:
    """The points than which no other is both further left and higher: nothing measured is faster and as accurate."""
    found, highest = set(), math.inf
    for index in sorted(range(len(points)), key=points.__getitem__):
        if points[index][1] < highest:
            found.add(index)
            highest = points[index][1]
    return found


def _places(point: Array, size: float, frame: Box) -> Array:
    """(places, 4): where a name of so many pixels may go, the most wanted first. A frame narrower than the name cannot hold
    it: then any place is as good."""
    (px, py), lifts = point, sorted((i * LINE / 2 for i in range(-24, 25)), key=abs)
    # Right of the point, left of it, above or below, then further and further away.
    shifts = (MARK + 3, -size - MARK - 3, -size / 2, 30, -size - 30, 70, -size - 70)
    boxes = [Box(px + dx, py - LINE / 2 + dy, px + dx + size, py + LINE / 2 + dy) for dy, dx in product(lifts, shifts)]
    return np.array([box for box in boxes if box.inside(frame)] or boxes)


def _distances(boxes: Array, points: Array) -> Array:
    """(boxes, points) from each point to the nearest one of each box."""
    nearest = np.clip(points, boxes[:, None, :2], boxes[:, None, 2:])
    return np.linalg.norm(nearest - points, axis=2)
