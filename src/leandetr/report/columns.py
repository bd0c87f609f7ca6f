"""What a table says of rows: its columns, what each step changed, and the words around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from leandetr.report.numbers import DASH, accuracy, defined, millions, milliseconds, number, times, with_spread
from leandetr.report.rows import Accuracy, Row, quantized, row_of, surely_slower

SLOWER = "slower than float"
NOT_YET = "not yet"


class Column(NamedTuple):
    """A column of a table: its title, the text of a cell, and whether the cells are numbers (set flush right)."""

    title: str
    cell: Callable[[Row], str]
    numeric: bool = True


class Change(NamedTuple):
    """What one step changed: `name` against `against`, on one runtime. ap: the difference, with its sign; interval: its
    middle 95 % over draws of the photographs."""

    name: str
    runtime: str
    against: str
    ap: str
    interval: str
    latency: str
    size: str


def speedup(row: Row) -> str:
    """The ratio, with its interval where the row has one."""
    low, high = row.get("speedup_low"), row.get("speedup_high")
    interval = f" ({low:.2f}–{high:.2f})" if defined(low) and defined(high) else ""
    return number(row.get("speedup"), 2, "×") + interval


def slower_than_float(row: Row) -> bool:
    """Whether a quantized row's speed-up is surely below 1."""
    return quantized(row) and surely_slower(row)


def note(row: Row) -> str:
    """What its measurement is marked with, and whether it is slower than float."""
    return ", ".join(filter(None, [row.get("mark", ""), SLOWER if slower_than_float(row) else ""]))


def average_precision(row: Row) -> str:
    """The mean over the seeds that are done, with their spread."""
    return with_spread(row["ap"], row["spread"]["ap"]) if row["seeds"] else NOT_YET


def change(row: Row) -> str:
    """The difference in AP to the row that it is held against, with its spread over seeds."""
    return with_spread(row["change"], row["change_spread"], signed=True)


def change_interval(row: Row) -> str:
    """95 % of that mean over draws of the photographs."""
    return DASH if row["change_interval"] is None else "{:+.3f} to {:+.3f}".format(*row["change_interval"])


def after_epoch(epoch: int, row: Row) -> str:
    """AP after an epoch, with its spread; a dash where it was not measured."""
    point = next((point for point in row["curve"] if point["epoch"] == epoch), None)
    return with_spread(point["ap"], point["spread"]) if point else DASH


def one_accuracy(key: Accuracy, row: Row) -> str:
    """One of COCO's other metrics."""
    return accuracy(row[key])


NAMES = [
    Column("row", lambda row: row["name"], numeric=False),
    Column("runtime", lambda row: row["runtime"], numeric=False),
]


def epoch_columns(epochs: Sequence[int]) -> list[Column]:
    """AP after each of the epochs."""
    return [Column(f"epoch {epoch}", partial(after_epoch, epoch)) for epoch in epochs]


def cost_columns(rows: Sequence[Row]) -> list[Column]:
    """The main table: what each row is worth and what it costs. Seeds, latency and notes have columns where a row has something
    for them."""
    columns = [*NAMES, Column("AP", average_precision), Column("change", change)]
    if any(row["planned"] != row["seeds"] or len(row["planned"]) > 1 for row in rows):
        columns.insert(2, Column("seeds", lambda row: f"{len(row['seeds'])} of {len(row['planned'])}"))
    columns.append(Column("AP50", lambda row: accuracy(row["ap50"])))
    if any("latency_ms" in row for row in rows):
        columns += [
            Column("ms", lambda row: milliseconds(row.get("latency_ms"))),
            Column("p90 ms", lambda row: milliseconds(row.get("latency_p90_ms"))),
            Column("speedup", speedup),
        ]
    if any(defined(row.get("theoretical_speedup")) for row in rows):
        columns.append(Column("in theory", lambda row: number(row.get("theoretical_speedup"), 2, "×")))
    columns += [
        Column("MB", lambda row: millions(row["size_bytes"])),
        Column("M params", lambda row: millions(row["parameters"])),
    ]
    if any(map(note, rows)):
        columns.append(Column("note", note, numeric=False))
    return columns


def accuracy_columns(epochs: Sequence[int] = ()) -> list[Column]:
    """COCO's six average precisions, AP after the epochs that the recipe names, and the seconds of an evaluation."""
    titles: dict[Accuracy, str] = {
        "ap50": "AP50",
        "ap75": "AP75",
        "ap_small": "small",
        "ap_medium": "medium",
        "ap_large": "large",
    }
    return [
        *NAMES,
        Column("AP", average_precision),
        *(Column(title, partial(one_accuracy, key)) for key, title in titles.items()),
        *epoch_columns(epochs),
        Column("evaluation s", lambda row: number(row["evaluate_seconds"], 1)),
    ]


def changes(rows: Sequence[Row]) -> list[Change]:
    """Every row that is held against another and has a result."""
    found = []
    for row in rows:
        other = row_of(row["against"], row["runtime"], rows)
        if other is not None and row["seeds"]:
            latency = times(row.get("latency_ms"), other.get("latency_ms")) + (f", {SLOWER}" if slower_than_float(row) else "")
            size = times(row["size_bytes"], other["size_bytes"])
            found.append(Change(row["name"], row["runtime"], other["name"], change(row), change_interval(row), latency, size))
    return found


def headline(rows: Sequence[Row]) -> str:
    """The fastest row beside the first one (the teacher), with ratios where both were measured on one runtime, and beside what
    its float row is held against (the student alone) where that is more accurate; "" without two rows that were measured."""
    latencies = [(latency, row) for row in rows if defined(latency := row.get("latency_ms"))]
    if not latencies:
        return ""
    timed = [row for _, row in latencies]
    fastest_ms, fastest = min(latencies, key=lambda pair: pair[0])
    firsts = [(latency, row) for latency, row in latencies if row["name"] == rows[0]["name"]] or [(fastest_ms, fastest)]
    first_ms, first = next((pair for pair in firsts if pair[1]["runtime"] == fastest["runtime"]), firsts[0])
    if first["name"] == fastest["name"]:
        return ""
    parts = [f"Fastest: {summary(fastest)}. For comparison: {summary(first)}"]
    if first["runtime"] == fastest["runtime"]:
        size, least = first["size_bytes"], fastest["size_bytes"]
        smaller = f", {size / least:.1f} times smaller" if size and least else ""
        difference = f", AP {fastest['ap'] - first['ap']:+.3f}" if defined(fastest["ap"]) and defined(first["ap"]) else ""
        parts.append(f": {first_ms / fastest_ms:.1f} times as fast{smaller}{difference}")
    float_row = row_of(fastest["float_row"], fastest["runtime"], rows)
    alone = row_of(float_row and float_row["against"], fastest["runtime"], timed)
    if alone and alone["name"] != first["name"] and (alone["ap"] or 0) > (fastest["ap"] or 0):
        parts.append(f". More accurate than the fastest: {summary(alone)}")
    return f"{''.join(parts)}."


def summary(row: Row) -> str:
    """A row in one line, as a headline has it."""
    cost = f"{milliseconds(row['latency_ms'])} ms, {millions(row['size_bytes'])} MB"
    return f"{row['name']} on {row['runtime']}, AP {average_precision(row)}, {cost}"


def legend(rows: Sequence[Row]) -> str:
    """What the columns of the main table mean."""
    parts = ["AP: COCO average precision, a fraction"]
    if any(len(row["planned"]) > 1 for row in rows):
        parts[0] += ", the mean over the seeds that are done, ± their sample standard deviation (none for one seed)"
    if any(row["against"] for row in rows):
        parts.append("change: difference in AP to the row that it is held against (see what each step changed), seed by seed")
    if any("latency_ms" in row for row in rows):
        parts.append(
            "ms, p90 ms: median and 90th percentile of one image. speedup: against the float row on the same runtime, with its "
            "interval where it was measured"
        )
    parts += ["MB: 10^6 bytes of the written artefact", f"{DASH}: undefined or not measured"]
    return ". ".join(parts) + "."


CHANGED = (
    "AP change: the mean over the seeds that both rows have, ± the sample standard deviation of their differences. "
    "95 % interval: of that mean on 200 random draws of as many validation images, the same for both rows; it does not hold "
    "what other seeds would add. "
)
RATIOS = CHANGED + "Latency and size: multiples of what the row held against has; ×0.50 is half."
AREAS = "Small, medium and large objects: areas below 32², up to 96² and above, in pixels of the photograph."
EPOCHS = "epoch N: AP on the validation images after that epoch, where AP itself is that of the best epoch."


def accuracy_legend(epochs: Sequence[int] = ()) -> str:
    """What the columns of the accuracy table mean, those of epochs where it has any."""
    return f"{AREAS}{f' {EPOCHS}' if epochs else ''} evaluation s: seconds for all validation images."
