"""The table a terminal shows."""

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from leandetr.report.rows import SLOWER, Row, cost_columns


def results_table(rows: Sequence[Row]) -> Table:
    """The rows of `results.json` for `rich.print`: names and numbers stay whole, speed-ups and notes wrap where space is short."""
    columns = cost_columns(rows)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        wraps = column.title in ("speedup", "note")
        table.add_column(column.title, justify="right" if column.numeric else "left", no_wrap=not wraps)
    for row in rows:
        # Text, not markup: a name may hold square brackets.
        cells = [Text(column.cell(row)) for column in columns]
        for cell in cells:
            cell.highlight_words([SLOWER], style="yellow")
        table.add_row(*cells)
    return table
