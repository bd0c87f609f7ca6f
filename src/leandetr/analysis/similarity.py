"""How alike the states of object and distillation queries are (SwinDETR, section 4: about 0.99 in every layer).

For two sets of states h_i and g_j of a decoder layer, over all images:

    between     the mean over the pairs of an image of cos(h_i, g_j)
    of_means    cos(mean h, mean g), the means over all images and queries
    to_first    the correlation over channels of the mean state of both sets with that of the training's first kept epoch

How much `between` means depends on how alike the queries of one set are among themselves, so that mean (over pairs of different
queries) stands beside it: the two sets have collapsed into one where all three agree, and are apart where the first is well
below the others. `of_means` is what the paper's 0.99 is: it forgets whatever differs from query to query, and is near 1 as soon
as states share a direction, which those of an untrained decoder do; see `to_first`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
        "within_distillation": cosines in [-1, 1], means over the images, "between_std": their standard deviation,
        "of_means": a cosine, "to_first": a correlation}]}]}

    Raises:
        UserError: a detector without distillation queries.
    """
    snapshots = over_training(models)
    states = {snapshot: measured(snapshot, split, images) for snapshot in snapshots}
    first = {snapshot.run: states[snapshot] for snapshot in reversed(snapshots)}
    found = {
        "images": len(next(iter(states.values())).cosines["between"]),
        "models": [snapshot.as_dict() | {"layers": by_layer(states[snapshot], first[snapshot.run])} for snapshot in snapshots],
    }
    write_json(Path(out) / "similarity.json", found)
    draw(found, Path(out) / "similarity.png")
    return found


class States(NamedTuple):
    """cosines: the mean cosines of `TITLES`, each (B, L). means: (2, L, D), the mean states of object and of distillation
    queries."""

    cosines: dict[str, Tensor]
    means: Tensor


@torch.inference_mode()
def measured(snapshot: Snapshot, split: Split, images: int | None) -> States:
    """Over all images of the split."""
    detector = opened(snapshot.path)
    if not has_distillation_queries(detector.config):
        raise UserError(
            f"{snapshot.path} has no distillation queries to compare its object queries with; name a detector that was "
            "distilled with --method hard-label"
        )
    batches, means = [], []
    for batch in progress(loader_of(detector, split, images)):
        output = answer(detector, batch)
        assert output.distillation is not None  # the detector has such queries
        batches.append(mean_cosines(output.hidden, output.distillation.hidden))
        means.append(torch.stack([each.hidden.double().mean(2) for each in (output, output.distillation)]))
    together = {name: torch.cat([part[name] for part in batches], 1).T for name in TITLES}
    return States(together, torch.cat(means, 2).mean(2))


def mean_cosines(objects: Tensor, others: Tensor) -> dict[str, Tensor]:
    """States (L, B, N, D) and (L, B, M, D) -> the mean cosines of `TITLES`, each (L, B); NaN within a set of one query."""
    objects, others = (F.normalize(states.double(), dim=-1) for states in (objects, others))

    def within(states: Tensor) -> Tensor:
        count = states.shape[2]
        squared = states.sum(2).square().sum(-1)  # the sum over all pairs, `count` of which are of a query with itself
        return (squared - count) / (count * (count - 1)) if count > 1 else torch.full_like(squared, torch.nan)

    between = (objects.mean(2) * others.mean(2)).sum(-1)
    return {"between": between, "within_object": within(objects), "within_distillation": within(others)}


def by_layer(states: States, first: States) -> list[dict[str, float | None]]:
    """Means over the images of (B, L) cosines, and what the mean states say, layer by layer."""
    spread = states.cosines["between"].std(0, correction=0).tolist()
    means = {name: states.cosines[name].mean(0) for name in TITLES}
    means["of_means"] = F.cosine_similarity(states.means[0], states.means[1], dim=-1)
    means["to_first"] = correlations(states.means.mean(0), first.means.mean(0))
    columns = {name: [value if math.isfinite(value) else None for value in values.tolist()] for name, values in means.items()}
    return [
        {"layer": index + 1, "between_std": spread[index]} | {name: columns[name][index] for name in columns}
        for index in range(len(spread))
    ]


def correlations(a: Tensor, b: Tensor) -> Tensor:
    """(L, D), (L, D) -> (L,), Pearson's over the D channels."""
    return F.cosine_similarity(a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True), dim=-1)


def draw(found: dict[str, Any], path: Path) -> None:
    """The similarities of what was written as JSON, as a PNG."""
    title = "How alike object and distillation queries are, layer by layer of the decoder"
    caption = (
        f"Mean cosine similarity of the decoder's states over all pairs of queries and {found['images']} images; bands: one "
        "standard deviation over the images; dashed: the cosine of the two sets' mean states, which tells less. Left near 1 "
        "and as high as the two others: both sets say the same, and the second set teaches nothing of its own. Left well below "
        "the others: the sets have specialised."
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
                panel.plot(x, [layer["of_means"] for layer in layers], color=colour, linestyle="--")
                panel.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        figures.label(panel, told, "decoder layer", "cosine similarity" if name == "between" else "")
        panel.set_xticks(range(1, 1 + max(len(model["layers"]) for model in found["models"])))
    low, high = axes[0, 0].get_ylim()
    if high - low < NARROWEST:  # rounding is not to look like a trend
        axes[0, 0].set_ylim((low + high - NARROWEST) / 2, (low + high + NARROWEST) / 2)
    figures.legend_beside(figure, axes[0, 0])
    figures.save(figure, path)
