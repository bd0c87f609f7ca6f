"""`report.md`: tables whose source is aligned, so that they read in a terminal as well as on a page."""

from collections.abc import Mapping, Sequence
from typing import Any

from leandetr.report.rows import (
    AREAS,
    LEGEND,
    RATIOS,
    Change,
    Column,
    Row,
    accuracy_columns,
    changes,
    cost_columns,
    duration,
    flat,
    headline,
)


def render_markdown(results: Mapping[str, Any]) -> str:
    """The text of `report.md`.

    Args:
        results: what `results.json` holds: `environment` (a mapping), `rows` (of `Row`), and, where known, `command` and
            `recipe` (text) and `steps` (of `name`, `seconds`, `summary`).
    """
    rows = results["rows"]
    parts = ["# What it cost", headline(rows), row_table(cost_columns(rows), rows), LEGEND]
    if compared := changes(rows):
        titles = ["row", "runtime", "against", "AP change", "latency", "size"]
        parts += ["## What each step changed", text_table(titles, compared, numeric=[False] * 3 + [True, False, True]), RATIOS]
    parts += ["## Accuracy", row_table(accuracy_columns(), rows), AREAS]
    if steps := results.get("steps"):
        cells = [[step["name"], duration(step["seconds"]), step["summary"]] for step in steps]
        parts += ["## Steps", text_table(["step", "time", "result"], cells, numeric=[False, True, False])]
    parts += ["## Environment", "\n".join(f"- {key}: {value}" for key, value in flat(results["environment"]))]
    if results.get("command"):
        parts += ["## Command", f"```\n{results['command'].strip()}\n```"]
    if results.get("recipe"):
        parts += ["## Recipe", f"```yaml\n{results['recipe'].strip()}\n```"]
    return "\n\n".join(part for part in parts if part) + "\n"


def row_table(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    cells = [[column.cell(row) for column in columns] for row in rows]
    return text_table([column.title for column in columns], cells, [column.numeric for column in columns])


def text_table(titles: Sequence[str], cells: Sequence[Sequence[str] | Change], numeric: Sequence[bool]) -> str:
    """A pipe table padded to equal widths; `numeric` columns are set flush right."""
    # A bar or a line break inside a cell would end the cell.
    cells = [[" ".join(cell.replace("|", "\\|").split()) for cell in line] for line in cells]
    widths = [max(3, *(len(line[i]) for line in [titles, *cells])) for i in range(len(titles))]

    def padded(line: Sequence[str]) -> str:
        return "| " + " | ".join(c.rjust(w) if n else c.ljust(w) for c, w, n in zip(line, widths, numeric)) + " |"

    rule = "|" + "|".join("-" * (w + 1) + (":" if n else "-") for w, n in zip(widths, numeric)) + "|"
    return "\n".join([padded(titles), rule, *map(padded, cells)])
