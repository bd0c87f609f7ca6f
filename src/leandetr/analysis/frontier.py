"""What a trained detector loses and gains with fewer decoder layers, queries and pixels: the frontier of `leandetr trim`, drawn
from its JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from leandetr.analysis import figures
from leandetr.errors import UserError
from leandetr.files import read_json
from leandetr.structures import size_in_words


def frontier(file: Path, out: Path) -> dict[str, Any]:
    """Draw the `frontier.json` of a trimming as `frontier.png` in `out`, and return what is in the JSON.

    Raises UserError where the file is none.
    """
    found = read_json(file)
    if not isinstance(found, dict) or not {"points", "frontier", "full", "chosen"} <= set(found):
        raise UserError(f"{file} is no frontier; name the frontier.json that leandetr trim wrote")
    draw(found, Path(out) / "frontier.png")
    return found


def draw(found: dict[str, Any], path: Path) -> None:
    """AP over latency: every point, its colour the size of the images and its marker the layers; the frontier as a line."""
    full, chosen = found["full"], found["chosen"]
    sizes = list(dict.fromkeys(size_in_words(point["size"]) for point in found["points"]))
    caption = (
        f"Each mark is the detector with so many decoder layers (the more, the larger the mark) and queries (the fewer, the "
        f"paler) and images of one size, without training. AP on {found['images']} photographs of `val`; one "
        f"photograph on {found['engine']}. The line joins those that no other is both as fast as and as accurate as. Latencies "
        "but for the corners of the grid and the chosen point are between measured ones."
    )
    title = f"Trimmed: {chosen['latency_ms']:.1f} ms in place of {full['latency_ms']:.1f}, AP {chosen['ap'] - full['ap']:+.4f}"
    figure, axes = figures.panels(title, caption, 1, 1, (9, 5.4))
    panel = axes[0, 0]
    for place, size in enumerate(sizes):
        mine = [point for point in found["points"] if size_in_words(point["size"]) == size]
        panel.scatter(
            [point["latency_ms"] for point in mine],
            [point["ap"] for point in mine],
            [10 + 60 * point["layers"] / full["layers"] for point in mine],
            color=figures.LINES[place % len(figures.LINES)],
            alpha=[0.25 + 0.65 * point["queries"] / full["queries"] for point in mine],
            linewidths=0,
            label=size,
        )
    line = found["frontier"]
    panel.plot([p["latency_ms"] for p in line], [p["ap"] for p in line], color="#444444", linewidth=1, label="frontier")
    for point, marker, name in ((full, "s", "untrimmed"), (chosen, "*", "chosen")):
        text = f"{name}: {point['layers']} layers, {point['queries']} queries, {size_in_words(point['size'])}"
        style = {"facecolors": "none", "edgecolors": "black", "s": 160, "linewidths": 1.4}
        panel.scatter([point["latency_ms"]], [point["ap"]], marker=marker, label=text, **style)
    figures.label(panel, "", f"milliseconds a photograph on {found['engine']}", "AP")
    figures.legend_beside(figure, panel)
    figures.save(figure, path)
