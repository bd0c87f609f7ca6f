"""How figures look: a title that says what is seen, axes with units, a caption that says how to read it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from leandetr.files import writing

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

#: told apart by colour-blind readers, dark enough for thin lines on white (Okabe and Ito)
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#444444")
MARKERS = "osD^vPX"
CHARACTERS_AN_INCH = 17.5
STYLE: dict[RcKeyType, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.markersize": 5,
}


def panels(
    title: str, caption: str, rows: int, columns: int, size: tuple[float, float], **grid: Any
) -> tuple[Figure, np.ndarray]:
    """A figure of `size` = (width, height) inches and its (rows, columns) axes; keyword arguments are those of `subplots`."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
        width = int(size[0] * CHARACTERS_AN_INCH)
        figure.suptitle(textwrap.fill(title, int(width * 0.7)), fontsize=11, fontweight="bold", x=0.01, ha="left")
        figure.supxlabel(textwrap.fill(caption, width), fontsize=8, color="#444444", x=0.01, ha="left")
        return figure, figure.subplots(rows, columns, squeeze=False, **grid)


def label(axes: Axes, title: str, x: str, y: str = "") -> None:
    """A panel's title and the names of its axes."""
    axes.set_title(title, loc="left", fontsize=9.5)
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def legend_beside(figure: Figure, axes: Axes) -> None:
    """The lines' names to the right of all panels, where they cover none of them."""
    handles, names = axes.get_legend_handles_labels()
    with mpl.rc_context(STYLE):
        figure.legend(handles, names, loc="outside right center")


def colours(epochs: Sequence[int | None]) -> list[Any]:
    """One a line: shades from dark to light for the epochs of a training, unlike colours for different detectors."""
    if len(epochs) > 1 and sum(epoch is not None for epoch in epochs) >= len(epochs) - 1:
        return list(mpl.colormaps["viridis"](np.linspace(0, 0.88, len(epochs))))
    return [LINES[index % len(LINES)] for index in range(len(epochs))]


def save(figure: Figure, path: Path) -> None:
    """Write a PNG; nothing half-written is ever at `path`."""
    with writing(path) as temporary:
        figure.savefig(temporary, format="png")
