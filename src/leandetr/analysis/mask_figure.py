"""The picture of `masks`: rows are kinds of maps, columns the feature levels of every detector, all over one photograph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from leandetr.analysis import figures

LONGEST = 480  # pixels of the photograph behind a map
PANEL = 1.75  # inches
NARROWEST = 8  # inches of a whole picture, below which its caption cannot be read


@dataclass
class Seen:
    """What a detector sees in one image, M of whose objects its matching gives a query.

    active, mask: (h, w) a level, in [0, 1]; the quality-weighted mask is divided by its largest value. psi: (M, h, w) a level,
    in [-1, 1]. objects: (M,) their indices among the image's. quality: (M,) in [0, 1]. found: (M, 4), the queries' boxes,
    (x0, y0, x1, y1) in [0, 1].
    """

    active: list[Tensor]
    mask: list[Tensor]
    psi: list[Tensor]
    objects: Tensor
    quality: Tensor
    found: Tensor


def draw(
    photograph: Image.Image, name: str, boxes: Tensor, labels: Sequence[str], views: Mapping[str, Seen], path: Path
) -> None:
    """Write the picture of one image.

    Args:
        photograph: of any size. name: said in the title.
        boxes: (M, 4) of its objects, (x0, y0, x1, y1) in [0, 1]. labels: their M classes.
        views: what every detector sees, by its name.
    """
    photograph = photograph.convert("L")
    photograph.thumbnail((LONGEST, LONGEST))
    chosen = extremes(list(views.values()))
    columns = 1 + sum(len(view.active) for view in views.values())
    shape, panel = photograph.height / photograph.width, max(PANEL, NARROWEST / columns)
    size = (panel * columns + 0.4, (panel * shape + 0.2) * (2 + len(chosen)) + 0.9)
    lines = dict(zip(views, figures.colours([None] * len(views))))
    title = f"Where detectors look in {name}: active features, and the masks of their queries"
    caption = (
        "Columns: the photograph, then every detector's feature levels (cells high x wide). Brighter is more, each map up to "
        "its own largest value. Active: mean absolute feature. Mask: sum over the matched queries of quality x squared "
        "response, by which feature distillation weighs the cells. Rows of an object: the absolute response psi to the query "
        "matched with it, of quality q; on the photograph its box in white, and the detectors' answers in their names' colours."
    )
    figure, axes = figures.panels(title, caption, 2 + len(chosen), columns, size)
    told = ["active region", "quality-weighted mask", *(f"{which}: {labels[number]}" for which, number in chosen.items())]
    for row, text in zip(axes, told):
        row[0].set_ylabel(text, fontsize=8)
    for panel in axes.flat:
        panel.imshow(photograph, cmap="gray", extent=(0, 1, 1, 0), aspect="auto", alpha=0.9)
        panel.set(xticks=[], yticks=[], xlim=(0, 1), ylim=(1, 0))
        panel.set_box_aspect(shape)
        panel.grid(visible=False)
        panel.spines[:].set_visible(False)
    outline(axes[0, 0], boxes, "white")
    axes[0, 0].set_title(f"{len(boxes)} objects", fontsize=8)
    first = 1
    for model, view in views.items():
        for level, (active, mask, psi) in enumerate(zip(view.active, view.mask, view.psi), start=first):
            over(axes[0, level], active)
            over(axes[1, level], mask)
            height, width = active.shape
            axes[0, level].set_title(f"{height} x {width}", fontsize=8)
            for row, target in zip(axes[2:], chosen.values()):
                at = view.objects.tolist().index(target)
                over(row[level], psi[at].abs())
                outline(row[level], boxes[target, None], "white", 0.8)
                row[level].set_title(f"q = {view.quality[at]:.2f}", fontsize=7, color=lines[model], pad=2)
        for row, target in zip(axes[2:], chosen.values()):
            outline(row[0], boxes[target, None], "white")
            outline(row[0], view.found[view.objects == target], lines[model], 1.2)
        axes[0, first].annotate(
            model, (0, 1), (0, 16), xycoords="axes fraction", textcoords="offset points", color=lines[model], fontweight="bold"
        )
        first += len(view.active)
    figures.save(figure, path)


def extremes(views: Sequence[Seen]) -> dict[str, int]:
    """The objects, among those that every detector has matched, with the highest and the lowest quality on average."""
    shared = set.intersection(*(set(view.objects.tolist()) for view in views))
    if not shared:
        return {}
    mean = {
        number: sum(view.quality[view.objects == number].item() for view in views) / len(views) for number in sorted(shared)
    }
    best, worst = max(mean, key=mean.__getitem__), min(mean, key=mean.__getitem__)
    return {"found best": best} if best == worst else {"found best": best, "found worst": worst}


def over(panel: Axes, values: Tensor) -> None:
    """A map in [0, 1] over the photograph: the stronger, the less of the photograph is left."""
    panel.imshow(
        values.clamp(0, 1).numpy(),
        cmap="inferno",
        vmin=0,
        vmax=1,
        extent=(0, 1, 1, 0),
        aspect="auto",
        interpolation="bilinear",
        alpha=np.clip(0.35 + 0.5 * values, 0, 1),
    )


def outline(panel: Axes, boxes: Tensor, colour: str, width: float = 1.0) -> None:
    """Draw boxes (N, 4), (x0, y0, x1, y1) in the panel's units."""
    for x0, y0, x1, y1 in boxes.tolist():
        panel.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=width))
