"""The table a terminal shows: narrower than the report's, one group of rows a runtime."""

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from leandetr.report.rows import SLOWER, Row, cost_columns

# What fits into 80 columns; the report has the rest.
TITLES = ("row", "AP", "ms", "p90 ms", "speedup", "MB", "note")
LONG = 24  # characters of a name beyond which names wrap too


def results_table(rows: Sequence[Row]) -> Table:
    """The rows of `results.json` for `rich.print`. Numbers stay whole; names, intervals and notes wrap where space is short."""
    columns = [column for column in cost_columns(rows) if column.title in TITLES]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    wrapped = {"speedup", "note"} | ({"row"} if any(len(row["name"]) > LONG for row in rows) else set())
    for column in columns:
        # Fold: a name without spaces (a path) is broken over lines, never cut.
        overflow = "fold" if column.title == "row" else "ellipsis"
        justify = "right" if column.numeric else "left"
        table.add_column(column.title, justify=justify, no_wrap=column.title not in wrapped, overflow=overflow)
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
