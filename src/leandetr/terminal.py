"""How every table looks in a terminal."""

from collections.abc import Collection

from rich import box
from rich.table import Table


def plain_table(*titles: str, numbers: Collection[str] = (), title: str | None = None) -> Table:
    """A table without a frame, so that 80 columns hold much. `numbers`: titles of columns that stand flush right and in one
    line; in others, a name that is too long is broken, never cut."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.title, table.title_justify, table.title_style = title, "left", "bold"
    for name in titles:
        numeric = name in numbers
        table.add_column(name, justify="right" if numeric else "left", no_wrap=numeric, overflow="fold")
    return table
