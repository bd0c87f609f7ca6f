"""How alike the states of object and distillation queries are (SwinDETR, section 4: about 0.99 in every layer).

For two sets of states h_i and g_j of a decoder layer, the mean over all pairs of cos(h_i, g_j). How much that means depends on
how alike the queries of one set are among themselves, so that mean (over pairs of different queries) stands beside it: the two
sets have collapsed into one where all three agree, and are apart where the first is well below the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from leandetr.analysis import figures
from leandetr.analysis.snapshots import Snapshot, answer, loader_of, opened, over_training, progress
from leandetr.data.coco import Split
from leandetr.detectors.query_sets import has_distillation_queries
from leandetr.errors import UserError
from leandetr.files import write_json

TITLES = {
    "between": "object and distillation queries",
    "within_object": "object queries among themselves",
    "within_distillation": "distillation queries among themselves",
}
NARROWEST = 0.05  # range of cosines on the axis


def similarity(models: Sequence[str | Path], split: Split, out: Path, images: int | None = None) -> dict[str, Any]:
    """Write `similarity.json` and `similarity.png` into `out` and return what is in the JSON.

    Args:
        models: saved detectors with distillation queries; a training with kept epochs stands for all of them.
        split: the images.
        images: how many of them, evenly spread; all by default.

    Returns:
        {"images": n, "models": [{"name", "run", "path", "epoch", "layers": [{"layer": 1, "between", "within_object",
        "within_distillation": cosines in [-1, 1], means over the images, "between_std": their standard deviation}]}]}

    Raises:
        UserError: a detector without distillation queries.
    """
    snapshots = over_training(models)
    states = {snapshot: cosines(snapshot, split, images) for snapshot in snapshots}
    found = {
        "images": len(next(iter(states.values()))["between"]),
        "models": [snapshot.as_dict() | {"layers": by_layer(states[snapshot])} for snapshot in snapshots],
    }
    write_json(Path(out) / "similarity.json", found)
    draw(found, Path(out) / "similarity.png")
    return found


@torch.inference_mode()
def cosines(snapshot: Snapshot, split: Split, images: int | None) -> dict[str, Tensor]:
    """The mean cosines of `TITLES`, each (B, L) over all images of the split."""
    detector = opened(snapshot.path)
    if not has_distillation_queries(detector.config):
        raise UserError(
            f"{snapshot.path} has no distillation queries to compare its object queries with; name a detector that was "
            "distilled with --method hard-label"
        )
    batches = []
    for batch in progress(loader_of(detector, split, images)):
        output = answer(detector, batch)
        batches.append(mean_cosines(output.hidden, output.distillation.hidden))
    return {name: torch.cat([part[name] for part in batches], 1).T for name in TITLES}


def mean_cosines(objects: Tensor, others: Tensor) -> dict[str, Tensor]:
    """States (L, B, N, D) and (L, B, M, D) -> the mean cosines of `TITLES`, each (L, B); NaN within a set of one query."""
    objects, others = (F.normalize(states.double(), dim=-1) for states in (objects, others))

    def within(states: Tensor) -> Tensor:
        count = states.shape[2]
        squared = states.sum(2).square().sum(-1)  # the sum over all pairs, `count` of which are of a query with itself
        return (squared - count) / (count * (count - 1)) if count > 1 else torch.full_like(squared, torch.nan)

    between = (objects.mean(2) * others.mean(2)).sum(-1)
    return {"between": between, "within_object": within(objects), "within_distillation": within(others)}


def by_layer(states: dict[str, Tensor]) -> list[dict[str, float | None]]:
    """Means over the images of (B, L) cosines, layer by layer."""
    spread = states["between"].std(0, correction=0).tolist()
    columns = {name: [value if math.isfinite(value) else None for value in states[name].mean(0).tolist()] for name in TITLES}
    return [
        {"layer": index + 1, "between_std": spread[index]} | {name: columns[name][index] for name in TITLES}
        for index in range(len(spread))
    ]


def draw(found: dict[str, Any], path: Path) -> None:
    """The similarities of what was written as JSON, as a PNG."""
    title = "How alike object and distillation queries are, layer by layer of the decoder"
    caption = (
        f"Mean cosine similarity of the decoder's states over all pairs of queries and {found['images']} images; bands: one "
        "standard deviation over the images. Left near 1 and as high as the two others: both sets say the same, and the second "
        "set teaches nothing of its own. Left well below the others: the sets have specialised."
    )
    figure, axes = figures.panels(title, caption, 1, 3, (11, 4.4), sharex=True, sharey=True)
    shades = figures.colours([model["epoch"] for model in found["models"]])
    for panel, (name, told) in zip(axes[0], TITLES.items()):
        for index, (model, colour) in enumerate(zip(found["models"], shades)):
            layers, marker = model["layers"], figures.MARKERS[index % len(figures.MARKERS)]
            x = [layer["layer"] for layer in layers]
            y = [math.nan if layer[name] is None else layer[name] for layer in layers]
            panel.plot(x, y, color=colour, marker=marker, label=model["name"])
            if name == "between":
                low, high = ([v + sign * layer["between_std"] for v, layer in zip(y, layers)] for sign in (-1, 1))
                panel.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        figures.label(panel, told, "decoder layer", "cosine similarity" if name == "between" else "")
        panel.set_xticks(range(1, 1 + max(len(model["layers"]) for model in found["models"])))
    low, high = axes[0, 0].get_ylim()
    if high - low < NARROWEST:  # rounding is not to look like a trend
        axes[0, 0].set_ylim((low + high - NARROWEST) / 2, (low + high + NARROWEST) / 2)
    figures.legend_beside(figure, axes[0, 0])
    figures.save(figure, path)
