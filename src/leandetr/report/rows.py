"""The rows of `results.json` as a reader wants them: numbers as text, and what each row is held against.

One place decides how a number is printed; the terminal table, `report.md` and `report.html` only lay the text out.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, NotRequired, TypedDict

DASH = "–"
SLOWER = "slower than float"

# A row without a quantization scheme in its name is held against the step before it.
STEP_BEFORE = {"distilled": "baseline", "baseline": "teacher"}


class Row(TypedDict):
    """One artefact on one runtime.

    name: `teacher`, `distilled`, `distilled-static`, ...; a quantized row is named as its float row, a dash and the scheme.
    artifact: the measured file or folder. runtime: `pytorch`, `onnxruntime`, ... ap ... ap_large: fractions in [0, 1]; None or
    -1 where undefined (no such objects). latency_ms, latency_p90_ms: median and 90th percentile of one image, in milliseconds.
    speedup: the float row's latency over this row's, on the same runtime (1 for a float row), and its interval's two ends.
    theoretical_speedup: by the bits of its products alone, not measured. size_bytes: of the written artefact. parameters: their
    number. note: what the reader must know about this row.
    """

    name: str
    artifact: str
    runtime: str
    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    latency_ms: float | None
    latency_p90_ms: float | None
    speedup: float | None
    size_bytes: int | None
    parameters: int | None
    speedup_low: NotRequired[float | None]
    speedup_high: NotRequired[float | None]
    theoretical_speedup: NotRequired[float | None]
    note: NotRequired[str | None]


class Column(NamedTuple):
    """A column of a table: its title, the text of a cell, and whether the cells are numbers (set flush right)."""

    title: str
    cell: Callable[[Row], str]
    numeric: bool = True


class Change(NamedTuple):
    """What one step changed: `name` against `against`, on one runtime. ap: the difference, with its sign."""

    name: str
    runtime: str
    against: str
    ap: str
    latency: str
    size: str


def defined(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and value >= 0


def number(value: float | None, decimals: int, suffix: str = "") -> str:
    """
    >>> number(12.345, 1), number(None, 1), number(-1, 3)
    ('12.3', '–', '–')
    """
    return f"{value:.{decimals}f}{suffix}" if defined(value) else DASH


def accuracy(value: float | None) -> str:
    return number(value, 3)


def milliseconds(value: float | None) -> str:
    return number(value, 1)


def millions(value: float | None) -> str:
    """Bytes as megabytes (10^6 bytes), a count as millions."""
    return number(value / 1e6 if defined(value) else None, 2)


def speedup(row: Row) -> str:
    """The ratio, with its interval where the row has one."""
    low, high = row.get("speedup_low"), row.get("speedup_high")
    interval = f" ({low:.2f}–{high:.2f})" if defined(low) and defined(high) else ""
    return number(row["speedup"], 2, "×") + interval


def reference(row: Row, rows: Sequence[Row]) -> Row | None:
    """The row on the same runtime that this one is held against: a quantized row's float row, else the step before it."""
    same_runtime = {other["name"]: other for other in rows if other["runtime"] == row["runtime"]}
    float_rows = [name for name, other in same_runtime.items() if other.get("theoretical_speedup") is None]
    return same_runtime.get(beginning(row["name"], float_rows) or STEP_BEFORE.get(row["name"], ""))


def beginning(name: str, names: Iterable[str]) -> str:
    """The longest of the names that this one goes on from after a dash; "" where there is none.

    >>> beginning("detr-large-static", ["detr", "detr-large", "detr-large-static"])
    'detr-large'
    """
    return max((other for other in names if name.startswith(f"{other}-")), key=len, default="")


def slower_than_float(row: Row, rows: Sequence[Row]) -> bool:
    """Whether a quantized row's speed-up is surely below 1."""
    float_row = reference(row, rows)
    quantized = float_row is not None and row["name"].startswith(f"{float_row['name']}-")
    return quantized and surely_slower(row)


def surely_slower(row: Mapping[str, Any]) -> bool:
    """Whether the speed-up, where it was measured, is below 1 with its whole interval, where it has one."""
    highest = row.get("speedup_high")
    highest = highest if defined(highest) else row.get("speedup")
    return defined(highest) and highest < 1


def note(row: Row, rows: Sequence[Row]) -> str:
    remarks = [SLOWER] if slower_than_float(row, rows) else []
    return "; ".join([*remarks, *([row["note"]] if row.get("note") else [])])


def cost_columns(rows: Sequence[Row]) -> list[Column]:
    """The main table: what each row is worth and what it costs. The notes' column is there when a row has a note."""
    columns = [
        Column("row", lambda row: row["name"], numeric=False),
        Column("runtime", lambda row: row["runtime"], numeric=False),
        Column("AP", lambda row: accuracy(row["ap"])),
        Column("AP50", lambda row: accuracy(row["ap50"])),
        Column("ms", lambda row: milliseconds(row["latency_ms"])),
        Column("p90 ms", lambda row: milliseconds(row["latency_p90_ms"])),
        Column("speedup", speedup),
        Column("MB", lambda row: millions(row["size_bytes"])),
        Column("M params", lambda row: millions(row["parameters"])),
    ]
    if any(defined(row.get("theoretical_speedup")) for row in rows):
        place = [column.title for column in columns].index("speedup") + 1
        columns.insert(place, Column("in theory", lambda row: number(row.get("theoretical_speedup"), 2, "×")))
    if any(note(row, rows) for row in rows):
        columns.append(Column("note", lambda row: note(row, rows), numeric=False))
    return columns


def accuracy_columns() -> list[Column]:
    """COCO's six average precisions."""
    columns = [
        Column("row", lambda row: row["name"], numeric=False),
        Column("runtime", lambda row: row["runtime"], numeric=False),
    ]
    titles = {"ap": "AP", "ap50": "AP50", "ap75": "AP75", "ap_small": "small", "ap_medium": "medium", "ap_large": "large"}
    return columns + [Column(title, lambda row, key=key: accuracy(row[key])) for key, title in titles.items()]


def changes(rows: Sequence[Row]) -> list[Change]:
    """Every row against its reference; rows without one (the teacher) are left out."""
    found = []
    for row in rows:
        other = reference(row, rows)
        if other is not None:
            ap = f"{row['ap'] - other['ap']:+.3f}" if defined(row["ap"]) and defined(other["ap"]) else DASH
            slower = f", {SLOWER}" if slower_than_float(row, rows) else ""
            latency = times(row["latency_ms"], other["latency_ms"]) + slower
            size = times(row["size_bytes"], other["size_bytes"])
            found.append(Change(row["name"], row["runtime"], other["name"], ap, latency, size))
    return found


def times(value: float | None, other: float | None) -> str:
    """
    >>> times(5, 20)
    '×0.25'
    """
    return f"×{value / other:.2f}" if defined(value) and defined(other) and other else DASH


def headline(rows: Sequence[Row]) -> str:
    """The fastest row beside the first one (the teacher), with ratios where both were measured on one runtime, and beside the
    student alone where that is more accurate; "" without two rows."""
    timed = [row for row in rows if defined(row["latency_ms"])]
    if not timed:
        return ""
    fastest = min(timed, key=lambda row: row["latency_ms"])
    firsts = [row for row in timed if row["name"] == rows[0]["name"]]
    first = next((row for row in firsts if row["runtime"] == fastest["runtime"]), firsts[0] if firsts else fastest)
    if first["name"] == fastest["name"]:
        return ""
    parts = [f"Fastest: {summary(fastest)}. For comparison: {summary(first)}"]
    if first["runtime"] == fastest["runtime"]:
        times, smaller = first["latency_ms"] / fastest["latency_ms"], first["size_bytes"] / fastest["size_bytes"]
        parts.append(f": {times:.1f} times as fast, {smaller:.1f} times smaller, AP {fastest['ap'] - first['ap']:+.3f}")
    alone = [row for row in rows if row["name"] == "baseline" and row["runtime"] == fastest["runtime"]]
    if alone and alone[0]["ap"] > fastest["ap"]:
        parts.append(f". The student without its teacher is more accurate: {summary(alone[0])}")
    return f"{''.join(parts)}."


def summary(row: Row) -> str:
    cost = f"{milliseconds(row['latency_ms'])} ms, {millions(row['size_bytes'])} MB"
    return f"{row['name']} on {row['runtime']}, AP {accuracy(row['ap'])}, {cost}"


LEGEND = (
    "AP: COCO average precision, a fraction. ms, p90 ms: median and 90th percentile of one image. speedup: against the float "
    "row on the same runtime, with its interval where it was measured. MB: 10^6 bytes of the written artefact. "
    f"{DASH}: undefined or not measured."
)
RATIOS = "Latency and size: multiples of what the row held against has; ×0.50 is half."
AREAS = "Small, medium and large objects: areas below 32², up to 96² and above, in pixels of the photograph."


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
