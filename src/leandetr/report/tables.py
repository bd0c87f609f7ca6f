"""The table of rows as text: for a terminal, narrower than the report's, and in Markdown."""

from collections.abc import Sequence
from html import escape
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from leandetr.report.columns import SLOWER, Change, Column, cost_columns, epoch_columns
from leandetr.report.rows import Row

# What fits into 80 columns; the report has the rest.
MEASURED = ("row", "seeds", "AP", "ms", "p90 ms", "speedup", "MB", "note")
TRAINED = ("row", "seeds", "AP", "change", "AP50")
LONG = 24  # characters of a name beyond which names wrap too


def results_table(rows: Sequence[Row], epochs: Sequence[int] = ()) -> Table:
    """The rows of `results.json` for `rich.print`, one group a runtime. Numbers stay whole; names, intervals and notes wrap
    where space is short."""
    columns = [*cost_columns(rows), *epoch_columns(epochs)]
    found = {column.title for column in columns}
    if "ms" in found:
        titles = MEASURED if "seeds" not in found else tuple(title for title in MEASURED if title != "p90 ms")
    else:
        titles = (*TRAINED, *(f"epoch {epoch}" for epoch in epochs))
    columns = [column for column in columns if column.title in titles]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    wrapped = {"speedup", "note"} | ({"row"} if any(len(row["name"]) > LONG for row in rows) else set())
    for column in columns:
        table.add_column(
            column.title,
            justify="right" if column.numeric else "left",
            no_wrap=column.title not in wrapped,
            overflow="fold" if column.title == "row" else "ellipsis",  # a name without spaces (a path) is broken, never cut
        )
    for runtime in dict.fromkeys(row["runtime"] for row in rows):
        table.add_section()
        table.add_row(Text(runtime, style="bold"))
        for row in rows:
            if row["runtime"] == runtime:
                # Text, not markup: a name may hold square brackets.
                cells = [Text(column.cell(row)) for column in columns]
                cells[-1].highlight_words([SLOWER], style="yellow")
                table.add_row(*cells)
    return table


def row_table(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """A pipe table with a line a row."""
    cells = [[column.cell(row) for column in columns] for row in rows]
    return text_table([column.title for column in columns], cells, [column.numeric for column in columns])


def text_table(titles: Sequence[str], cells: Sequence[Sequence[Any] | Change], numeric: Sequence[bool]) -> str:
    """A pipe table padded to equal widths, so that its source reads in a terminal as well as on a page; `numeric` columns are
    set flush right."""
    # A bar or a line break inside a cell would end the cell, and a name may look like HTML.
    cells = [[" ".join(escape(cell, quote=False).replace("|", "\\|").split()) for cell in line] for line in cells]
    widths = [max(3, *(len(line[i]) for line in [titles, *cells])) for i in range(len(titles))]

    def padded(line: Sequence[str]) -> str:
        return "| " + " | ".join(c.rjust(w) if n else c.ljust(w) for c, w, n in zip(line, widths, numeric)) + " |"

    rule = "|" + "|".join("-" * (w + 1) + (":" if n else "-") for w, n in zip(widths, numeric)) + "|"
    return "\n".join([padded(titles), rule, *map(padded, cells)])
