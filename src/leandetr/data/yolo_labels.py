"""The lines of a YOLO label file, and the boxes in them."""

from dataclasses import dataclass
from pathlib import Path

from leandetr.data.faults import Faults, Unusable
from leandetr.data.labelled import LabelledObject, read_text
from leandetr.errors import UserError

TOLERANCE = 1e-3  # by which a relative number may exceed 1: rounding, not pixels


@dataclass(frozen=True)
class Line:
    """A line of a label file: its numbers, the class first; its place; its text."""

    values: list[float]
    place: str
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.text:.60}"


def read_lines(file: Path, faults: Faults) -> list[Line]:
    """The lines of a label file. Raises Unusable where it cannot be read, or no line of it."""
    if not file.exists():
        return []
    try:
        text = read_text(file)
    except UserError as error:
        raise Unusable("unreadable label file", str(error).partition(";")[0]) from error
    lines, bad = [], []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            values = [float(field) for field in line.split()]  # some tools write the class as 1.0 or 1e+00
        except ValueError:
            bad.append(Line([], f"{file}, line {number}", line.strip()))
            continue
        if values:
            lines.append(Line(values, f"{file}, line {number}", line.strip()))
    if bad and not lines:
        raise Unusable("unreadable label file", str(bad[0]))
    for found in bad:
        faults.add("line is not numbers", str(found))
    return lines


def objects_in(
    lines: list[Line], size: tuple[int, int], names: dict[int, str], key_points: int, faults: Faults
) -> list[LabelledObject]:
    """The objects of an image of a size (height, width); lines without a usable box are left out and counted.

    names: of the classes of all lines. key_points: numbers of key points behind a box.
    """
    objects = []
    for line in lines:
        box = _box(line.values[1:], key_points)
        if box is None:
            faults.add("line is neither a box nor a polygon", str(line))
        elif kind := _fault_of(box):
            faults.add(kind, str(line))
        else:
            cx, cy, w, h = box
            height, width = size
            pixels = ((cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height)
            objects.append(LabelledObject(names[int(line.values[0])], pixels))
    return objects


def _box(values: list[float], key_points: int) -> tuple[float, float, float, float] | None:
    """(cx, cy, w, h) of a line without its class; None where it is of no known length."""
    if len(values) in (4, 5) or (key_points and len(values) == 4 + key_points):
        return values[0], values[1], values[2], values[3]
    if len(values) < 6 or len(values) % 2:
        return None
    x, y = values[::2], values[1::2]
    left, top, right, bottom = min(x), min(y), max(x), max(y)
    return (left + right) / 2, (top + bottom) / 2, right - left, bottom - top


def _fault_of(box: tuple[float, float, float, float]) -> str | None:
    cx, cy, w, h = box
    if w <= 0 or h <= 0:
        return "empty box"
    if not (max(w, h) <= 1 + TOLERANCE and -TOLERANCE <= min(cx, cy) <= max(cx, cy) <= 1 + TOLERANCE):
        return "box is not in parts of the image"
    return None
