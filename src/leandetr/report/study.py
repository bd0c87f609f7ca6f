"""The table of a study: mean and spread over seeds, differences seed by seed, AP along the training.

A mean is over the seeds that are done; the spread behind it, ±, is their sample standard deviation, and there is none for a
single seed. A row that has no result yet is shown all the same.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import yaml
from rich import box
from rich.table import Table
from rich.text import Text

from leandetr.files import write_text
from leandetr.report import rows as numbers
from leandetr.report.curves import ap_over_epochs
from leandetr.report.markdown import text_table
from leandetr.report.page import TEMPLATES
from leandetr.report.rows import DASH, Column, accuracy, defined, millions, milliseconds

ACCURACIES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
LATENCY = ("latency_ms", "latency_p90_ms", "speedup", "speedup_low", "speedup_high")
NOT_YET = "not yet"
TIMES = "ms, p90 ms: median and 90th percentile of one image. speedup: against the float row on the same runtime. "
TERMINAL = ("row", "seeds", "AP", "change", "AP50")  # what fits into 80 columns, with the first epochs

Measured = tuple[float | None, float | None]  # mean and spread


class Point(TypedDict):
    """AP after an epoch: mean and spread over the seeds that have come so far."""

    epoch: int
    ap: float
    spread: float | None


class StudyRow(TypedDict):
    """A variant on a runtime, over the seeds that are done.

    seeds: of them; planned: all that there will be. ap ... ap_large, evaluate_seconds: means, None where undefined; `spread`
    has the spread of each. against: the row that `change`, the mean difference in AP over the seeds that both have, is to.
    curve: of the trainings. runs: what each seed measured. size_bytes, parameters: of the artefact.
    """

    name: str
    runtime: str
    seeds: list[int]
    planned: list[int]
    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    evaluate_seconds: float | None
    spread: dict[str, float | None]
    against: str | None
    change: float | None
    change_spread: float | None
    size_bytes: int | None
    parameters: int | None
    curve: list[Point]
    runs: list[dict[str, Any]]
    latency_ms: NotRequired[float]
    latency_p90_ms: NotRequired[float]
    speedup: NotRequired[float]
    speedup_low: NotRequired[float]
    speedup_high: NotRequired[float]


def mean_and_spread(values: Sequence[float]) -> Measured:
    """
    >>> mean_and_spread([1.0, 2.0, 3.0]), mean_and_spread([1.0]), mean_and_spread([])
    ((2.0, 1.0), (1.0, None), (None, None))
    """
    return statistics.fmean(values) if values else None, statistics.stdev(values) if len(values) > 1 else None


def combine(
    name: str,
    runtime: str,
    found: Mapping[int, Mapping[str, Any]],
    planned: Sequence[int],
    against: str | None = None,
    others: Mapping[int, Mapping[str, Any]] | None = None,
) -> StudyRow:
    """A row out of what its seeds measured.

    Args:
        found: seed -> COCO's metrics (-1 where undefined), `evaluate_seconds`, `size_bytes`, `parameters` and `curve`, a
            mapping from epochs to AP.
        against, others: the row to compare with, and what its seeds measured.
    """
    found = {seed: found[seed] for seed in planned if seed in found}
    measured = {
        field: mean_and_spread([run[field] for run in found.values() if defined(run[field])])
        for field in (*ACCURACIES, "evaluate_seconds")
    }
    differences = [run["ap"] - others[seed]["ap"] for seed, run in found.items() if seed in others] if others else []
    change, change_spread = mean_and_spread(differences)
    last = next(reversed(found.values()), {})
    return StudyRow(
        name=name,
        runtime=runtime,
        seeds=list(found),
        planned=list(planned),
        **{field: mean for field, (mean, _) in measured.items()},
        spread={field: spread for field, (_, spread) in measured.items()},
        against=against,
        change=change,
        change_spread=change_spread,
        size_bytes=last.get("size_bytes"),
        parameters=last.get("parameters"),
        curve=_curve([run["curve"] for run in found.values()]),
        runs=[{"seed": seed, **run} for seed, run in found.items()],
    )


def _curve(runs: Sequence[Mapping[int, float]]) -> list[Point]:
    points = []
    for epoch in sorted({epoch for run in runs for epoch in run}):
        ap, spread = mean_and_spread([run[epoch] for run in runs if epoch in run])
        points.append(Point(epoch=epoch, ap=ap, spread=spread))
    return points


def with_spread(mean: float | None, spread: float | None, signed: bool = False) -> str:
    """
    >>> with_spread(0.3, 0.012), with_spread(0.3, None), with_spread(0.02, None, signed=True), with_spread(None, None)
    ('0.300 ±0.012', '0.300', '+0.020', '–')
    """
    if mean is None:
        return DASH
    return (f"{mean:+.3f}" if signed else f"{mean:.3f}") + ("" if spread is None else f" ±{spread:.3f}")


def _measured(rows: Sequence[StudyRow]) -> bool:
    return any("latency_ms" in row for row in rows)


def study_columns(rows: Sequence[StudyRow], epochs: Sequence[int]) -> list[Column]:
    """Accuracy, AP after the epochs that the study names, and what an evaluation and an artefact cost. The latency's columns
    are there when it was measured, the notes' when a quantized row is slower than its float row."""

    def ap(row: StudyRow) -> str:
        return with_spread(row["ap"], row["spread"]["ap"]) if row["seeds"] else NOT_YET

    def after(epoch: int, row: StudyRow) -> str:
        point = next((point for point in row["curve"] if point["epoch"] == epoch), None)
        return with_spread(point["ap"], point["spread"]) if point else DASH

    columns = [
        Column("row", lambda row: row["name"], numeric=False),
        Column("runtime", lambda row: row["runtime"], numeric=False),
        Column("seeds", lambda row: f"{len(row['seeds'])} of {len(row['planned'])}"),
        Column("AP", ap),
        Column("change", lambda row: with_spread(row["change"], row["change_spread"], signed=True)),
        *(Column(f"epoch {epoch}", lambda row, epoch=epoch: after(epoch, row)) for epoch in epochs),
        Column("AP50", lambda row: accuracy(row["ap50"])),
        Column("AP75", lambda row: accuracy(row["ap75"])),
        Column("small", lambda row: accuracy(row["ap_small"])),
        Column("medium", lambda row: accuracy(row["ap_medium"])),
        Column("large", lambda row: accuracy(row["ap_large"])),
        Column("evaluation s", lambda row: numbers.number(row["evaluate_seconds"], 1)),
    ]
    if _measured(rows):
        columns += [
            Column("ms", lambda row: milliseconds(row.get("latency_ms"))),
            Column("p90 ms", lambda row: milliseconds(row.get("latency_p90_ms"))),
            Column("speedup", lambda row: numbers.speedup(row) if "speedup" in row else DASH),
        ]
    columns += [
        Column("MB", lambda row: millions(row["size_bytes"])),
        Column("M params", lambda row: millions(row["parameters"])),
    ]
    if any(map(numbers.surely_slower, rows)):
        columns.append(Column("note", lambda row: numbers.SLOWER if numbers.surely_slower(row) else "", numeric=False))
    return columns


def legend(rows: Sequence[StudyRow], epochs: Sequence[int]) -> str:
    against = {row["name"]: row["against"] for row in rows if row["against"] is not None}
    held: dict[str, list[str]] = {}
    for name, other in against.items():
        if other != numbers.beginning(name, set(against.values())):
            held.setdefault(other, []).append(name)
    to = ["the row that a name begins with"] if sum(map(len, held.values())) < len(against) else []
    if held:
        to.append(max(held, key=lambda name: len(held[name])))
    others = "".join(f", {' and '.join(names)} to {other}" for other, names in held.items() if other != to[-1])
    change = f"change: mean difference in AP to {', else to '.join(to)}{others}, seed by seed. " if to else ""
    after = (
        "epoch N: AP on the validation images after that epoch, where AP itself is that of the best epoch. " if epochs else ""
    )
    return (
        "AP: COCO average precision, a fraction, the mean over the seeds that are done, ± their sample standard deviation "
        f"(none for one seed). {change}{after}evaluation s: seconds for all validation images. "
        f"{TIMES if _measured(rows) else ''}MB: 10^6 bytes of the written artefact. {DASH}: undefined or not measured."
    )


def title(results: Mapping[str, Any]) -> str:
    """What the study is of, by its recipe."""
    folder = yaml.safe_load(results["recipe"])["data"].get("folder")
    return f"Study on {Path(folder).name if folder else 'synthetic shapes'}"


def study_table(results: Mapping[str, Any]) -> Table:
    """The rows of a study's `results.json` for `rich.print`, narrower than the report's."""
    rows, wanted = results["rows"], (*TERMINAL, *(f"epoch {epoch}" for epoch in results["epochs"]))
    columns = [column for column in study_columns(rows, results["epochs"]) if column.title in wanted]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column.title, justify="right" if column.numeric else "left", no_wrap=column.numeric, overflow="fold")
    for runtime in dict.fromkeys(row["runtime"] for row in rows):
        table.add_section()
        table.add_row(Text(runtime, style="bold"))
        for row in rows:
            if row["runtime"] == runtime:
                table.add_row(*(Text(column.cell(row)) for column in columns))
    return table


def write_study(results: Mapping[str, Any], folder: Path) -> None:
    """Write `report.md` and `report.html` of a study into `folder`. Raises UserError where it cannot be written."""
    rows = sorted(results["rows"], key=lambda row: row["runtime"] == "pytorch")  # what is deployed comes first
    columns = study_columns(rows, results["epochs"])
    cells = [[column.cell(row) for column in columns] for row in rows]
    steps = [(step["name"], numbers.duration(step["seconds"]), step["summary"]) for step in results["steps"]]
    environment = numbers.flat(results["environment"])
    parts = [
        f"# {title(results)}",
        results["left"],
        text_table([column.title for column in columns], cells, [column.numeric for column in columns]),
        legend(rows, results["epochs"]),
        "## Steps",
        text_table(["step", "time", "result"], steps, numeric=[False, True, False]),
        "## Environment",
        "\n".join(f"- {key}: {value}" for key, value in environment),
        f"## Command\n\n```\n{results['command'].strip()}\n```",
        f"## Recipe\n\n```yaml\n{results['recipe'].strip()}\n```",
    ]
    write_text(folder / "report.md", "\n\n".join(part for part in parts if part) + "\n")
    page = TEMPLATES.get_template("study.html.j2").render(
        title=title(results),
        left=results["left"],
        table={"columns": columns, "rows": cells},
        legend=legend(rows, results["epochs"]),
        slower=numbers.SLOWER,
        plots=[ap_over_epochs(rows), ap_over_epochs(rows, width=380)],
        steps=steps,
        environment=environment,
        command=results["command"],
        recipe=results["recipe"],
    )
    write_text(folder / "report.html", page)
