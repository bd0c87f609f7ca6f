"""How stable the assignment of queries to objects is from one decoder stage to the next (DETRDistill, supplement, figure 7;
after DN-DETR, which compares epochs in the same way).

V_n^k is the index of the object that the Hungarian matcher gives to query n at stage k, or -1 where it gives none. Then

    IS^k = sum over n of 1(V_n^k != V_n^(k+1))

An object that moves from one query to another counts twice, so IS^k is between 0 and twice the number of objects; the fraction
of objects that are found by another query is what detectors can be compared by on images with many objects and few.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leandetr.analysis import figures
from leandetr.analysis.snapshots import Snapshot, answer, loader_of, opened, progress, single
from leandetr.data.coco import Split
from leandetr.errors import UserError
from leandetr.files import write_json
from leandetr.losses import HungarianMatcher, pad_targets
from leandetr.losses.matcher import Assignment


def stability(models: Sequence[str | Path], split: Split, out: Path, images: int | None = None) -> dict[str, Any]:
    """Write `stability.json` and `stability.png` into `out` and return what is in the JSON.

    Args:
        models: saved detectors, each matched by its own family's costs; `training/epoch-1` of a run is its first epoch, where
            the training was told to keep it (`training.keep_epochs`).
        split: the images and their objects.
        images: how many of them, evenly spread; all by default.

    Returns:
        {"images": n, "objects": their number, "models": [{"name", "run", "path", "epoch", "queries": N, "stages": [{"from": 1,
        "to": 2, "instability": IS^k, the mean over the images, "instability_error": its standard error, "objects_moved":
        fraction of the objects in [0, 1]}]}]}

    Raises:
        UserError: a detector with a single decoder stage; images without any object.
    """
    rows: list[dict[str, Any]] = []
    counts: list[int] = []
    for snapshot in single(models):
        row, counts = measured(snapshot, split, images)
        rows.append(snapshot.as_dict() | row)
    found = {"images": len(counts), "objects": sum(counts), "models": rows}
    write_json(Path(out) / "stability.json", found)
    draw(found, Path(out) / "stability.png")
    return found


@torch.inference_mode()
def measured(snapshot: Snapshot, split: Split, images: int | None) -> tuple[dict[str, Any], list[int]]:
    """A detector's row of the result, and the number of objects of every image."""
    detector = opened(snapshot.path)
    matcher = HungarianMatcher.from_config(detector.config, detector.head)
    changed, moved, counts = [], [], []
    for batch in progress(loader_of(detector, split, images)):
        output = answer(detector, batch)
        stages, _, queries, _ = output.logits.shape
        if stages < 2:
            raise UserError(f"{snapshot.path} has one decoder stage, and its matching nothing to change to; name another model")
        objects = pad_targets(batch["labels"])
        pairs = matcher(output.logits, output.boxes, objects)
        shape = (stages, len(objects.sizes), queries)
        changed.append(instability(assigned_objects(pairs, shape)))
        moved.append(instability(assigned_queries(pairs, (*shape[:2], objects.classes.shape[1]))))
        counts += objects.sizes
    if not sum(counts):
        raise UserError(f"the images of {split.annotations} hold no objects that queries could be matched with; name others")
    per_image = torch.cat(changed, 1).double()  # (L - 1, B)
    fraction = torch.cat(moved, 1).sum(1) / sum(counts)
    error = per_image.std(1, correction=0) / len(counts) ** 0.5
    columns = zip(per_image.mean(1).tolist(), error.tolist(), fraction.tolist())
    return {
        "queries": queries,
        "stages": [
            {"from": k, "to": k + 1, "instability": mean, "instability_error": error, "objects_moved": part}
            for k, (mean, error, part) in enumerate(columns, start=1)
        ],
    }, counts


def assigned_objects(pairs: Assignment, shape: tuple[int, int, int]) -> Tensor:
    """V: (L, B, N), the object of every query, -1 where it has none."""
    found = torch.full(shape, -1)
    found[pairs.layers, pairs.images, pairs.queries] = pairs.targets
    return found


def assigned_queries(pairs: Assignment, shape: tuple[int, int, int]) -> Tensor:
    """(L, B, M), the query of every object, -1 where there is none."""
    found = torch.full(shape, -1)
    found[pairs.layers, pairs.images, pairs.targets] = pairs.queries
    return found


def instability(assigned: Tensor) -> Tensor:
    """(L, B, N) indices -> (L - 1, B): how many of the N differ between a stage and the next."""
    return (assigned[1:] != assigned[:-1]).sum(-1)


def draw(found: dict[str, Any], path: Path) -> None:
    """The instability of what was written as JSON, as a PNG."""
    title = "How much the matching of queries with objects changes between the decoder's stages"
    caption = (
        f"Hungarian matching of every stage's predictions on {found['images']} images with {found['objects']} objects, the "
        "matching costs being each detector's own. Left: queries whose object differs from that of the stage before (IS of "
        "DETRDistill, figure 7; bars: standard error over the images). An object that moves to another query counts twice. "
        "Right: the objects that moved. 0 is a perfectly stable matching."
    )
    figure, axes = figures.panels(title, caption, 1, 2, (10, 4.4), sharex=True)
    shades = figures.colours([model["epoch"] for model in found["models"]])
    for index, (model, colour) in enumerate(zip(found["models"], shades)):
        x = [stage["from"] for stage in model["stages"]]
        style = {"color": colour, "marker": figures.MARKERS[index % len(figures.MARKERS)], "label": model["name"]}
        errors = [stage["instability_error"] for stage in model["stages"]]
        axes[0, 0].errorbar(x, [stage["instability"] for stage in model["stages"]], errors, capsize=2, **style)
        axes[0, 1].plot(x, [100 * stage["objects_moved"] for stage in model["stages"]], **style)
    figures.label(axes[0, 0], "instability IS", "decoder stages", "queries an image")
    figures.label(axes[0, 1], "objects that another query finds", "decoder stages", "% of all objects")
    for panel in axes[0]:
        steps = range(1, 1 + max(len(model["stages"]) for model in found["models"]))
        panel.set_xticks(steps, [f"{k} to {k + 1}" for k in steps])
        panel.set_ylim(bottom=0)
    figures.legend_beside(figure, axes[0, 0])
    figures.save(figure, path)
