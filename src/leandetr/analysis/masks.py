"""Where a detector's features are active, and where its queries look: drawn over the photograph, and in numbers.

Three maps over the cells of every feature level F (h x w x d):

    active region          1/d sum over channels of |F|, from the image's smallest to its largest value (DETRDistill, figure 2)
    mask of query i        psi_i = F . Q_i, with Q_i the query's state after the last decoder layer (eq. 6, figure 4)
    quality-weighted mask  sum over i of q_i psi_i^2, with the quality q_i = c_i^0.5 IoU_i^0.5 of eq. 7: what the squared
                           differences of eq. 8 are weighted with (figure 6)

psi_i is divided by its largest absolute value, as where it is distilled. Only queries that the detector's own matching gives an
object have a quality.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from leandetr.analysis.mask_figure import Seen, draw
from leandetr.analysis.snapshots import answer, opened, progress, single, spread
from leandetr.boxes import to_corners
from leandetr.data.batches import collate
from leandetr.data.coco import CocoDataset, Split
from leandetr.data.transforms import eval_transform
from leandetr.detectors.detector import Detector
from leandetr.distillation.features import TargetAwareFeatures
from leandetr.errors import unknown
from leandetr.files import write_json

GRID = 96  # numbers are taken of maps brought to so many cells a side, so that they do not depend on a detector's strides
DRAWN = 3
NUMBERS = ("active_inside", "mask_inside", "peak_inside", "peak_on_object", "active_like_first", "mask_like_first")


def masks(
    models: Sequence[str | Path], split: Split, out: Path, files: Sequence[str] = (), images: int | None = None
) -> dict[str, Any]:
    """Write `masks.json` and a PNG an image of `files` into `out` and return what is in the JSON.

    Args:
        models: saved detectors; the others are compared with the first, such as a teacher.
        split: the images and their objects.
        files: file names, as the annotations have them, of the images to draw; three, evenly spread, by default.
        images: of how many images, evenly spread, the numbers are; all by default.

    Returns:
        {"images": n, "area_inside": share of the images' area inside of their objects' boxes, "drawn": names of the PNGs,
        "models": [{"name", "run", "path", "epoch", "quality": the objects' mean, "levels": [{"cells": [h, w] in the last image,
        "active_inside", "mask_inside": shares of the maps that lie inside of the boxes, "peak_inside", "peak_on_object": share
        of the objects' queries whose |psi_i| is largest inside of the object's own box, and of any object's,
        "active_like_first", "mask_like_first": correlation with the first model's map of the level with the most similar number
        of cells}]}]}; means over the images, None where none has a value.

    Raises:
        UserError: a name in `files` that the annotations do not have.
    """
    snapshots = single(models)
    detectors = [opened(snapshot.path) for snapshot in snapshots]
    datasets = [CocoDataset(split, eval_transform(d.preprocessing), d.class_map) for d in detectors]
    names = [datasets[0].annotations.file_name(index) for index in range(len(datasets[0]))]
    strange = next((file for file in files if file not in names), None)
    if strange is not None:
        raise unknown(f"image of {split.annotations}", strange, names)
    counted = spread(len(names), images)
    drawn = dict.fromkeys([names.index(file) for file in files] or [counted[i] for i in spread(len(counted), DRAWN)])

    numbers: list[list[Any]] = [[] for _ in snapshots]
    qualities: list[list[Tensor]] = [[] for _ in snapshots]
    areas, pictures = [], []
    for index in progress([*drawn, *(i for i in counted if i not in drawn)]):
        views = [look(detector, dataset, index) for detector, dataset in zip(detectors, datasets)]
        target = datasets[0][index][1]
        boxes = to_corners(target["boxes"])
        if index in drawn:
            pictures.append(f"masks-{'-'.join(PurePosixPath(names[index]).with_suffix('.png').parts)}")
            photograph, seen = datasets[0].load_image(index), {s.name: view for s, view in zip(snapshots, views)}
            labels = [datasets[0].class_map.names[label] for label in target["class_labels"]]
            draw(photograph, names[index], boxes, labels, seen, Path(out) / pictures[-1])
        if index in counted:
            areas.append(inside(boxes).double().mean().item())
            for row, quality, view in zip(numbers, qualities, views):
                row.append(compared(view, views[0], boxes))
                quality.append(view.quality)
    found = {
        "images": len(counted),
        "area_inside": sum(areas) / len(areas),
        "drawn": pictures,
        "models": [
            snapshot.as_dict() | {"quality": _number(torch.cat(quality).mean()), "levels": _levels(row, view)}
            for snapshot, quality, row, view in zip(snapshots, qualities, numbers, views)
        ],
    }
    write_json(Path(out) / "masks.json", found)
    return found


@torch.inference_mode()
def look(detector: Detector, dataset: CocoDataset, index: int) -> Seen:
    """A detector's view of an image alone, and so without padding."""
    batch = collate([dataset[index]])
    term = TargetAwareFeatures.build(detector, detector)
    output = answer(detector, batch)
    pairs, quality = term.assigned(output, batch)
    psi = [term.responses(level, output.hidden[-1][:, pairs.queries])[0] for level in term.levels(output, output, batch)]
    masks = [term.weights(responses[None], quality[None], output.hidden.shape[2])[0] for responses in psi]
    return Seen(
        active=[_stretched(level[0].abs().mean(0)) for level in output.features],
        mask=[mask / mask.max().clamp(min=1e-12) for mask in masks],
        psi=psi,
        objects=pairs.targets,
        quality=quality,
        found=to_corners(pairs.of_queries(output.boxes[-1:])),
    )


def inside(boxes: Tensor) -> Tensor:
    """(M, 4), (x0, y0, x1, y1) in [0, 1] -> (GRID, GRID), whether a cell's centre is inside of any of them."""
    return _each_inside(boxes).any(0)


def compared(view: Seen, first: Seen, boxes: Tensor) -> Tensor:
    """The `NUMBERS` of every level, (levels, 6); NaN where an image has no objects, or a map no variation."""
    within, each = inside(boxes), _each_inside(boxes)
    rows = []
    for active, mask, psi in zip(*(map(_on_grid, maps) for maps in (view.active, view.mask, view.psi))):
        row = [_share(part[0], within) for part in (active, mask)]
        peaks = psi.abs().flatten(1).argmax(1)
        row.append(each[view.objects].flatten(1).gather(1, peaks[:, None]).double().mean())
        row.append(within.flatten()[peaks].double().mean())
        rows.append(row)
    for row, *maps in zip(rows, view.active, view.mask):
        others = (_nearest(part, own) for part, own in zip((first.active, first.mask), maps))
        row += [_correlation(_on_grid(own), _on_grid(other)) for own, other in zip(maps, others)]
    return torch.stack([torch.stack(row) for row in rows])


def _levels(rows: list[Tensor], view: Seen) -> list[dict[str, Any]]:
    means = torch.stack(rows).nanmean(0)
    return [
        {"cells": list(active.shape)} | {name: _number(value) for name, value in zip(NUMBERS, level)}
        for active, level in zip(view.active, means)
    ]


def _number(value: Tensor) -> float | None:
    return value.item() if math.isfinite(value) else None


def _stretched(values: Tensor) -> Tensor:
    return (values - values.min()) / (values.max() - values.min()).clamp(min=1e-12)


def _on_grid(maps: Tensor) -> Tensor:
    """(h, w) or (M, h, w) -> (1 or M, GRID, GRID)."""
    return F.interpolate(maps.reshape(-1, 1, *maps.shape[-2:]), (GRID, GRID), mode="bilinear", align_corners=False)[:, 0]


def _each_inside(boxes: Tensor) -> Tensor:
    """(M, 4) -> (M, GRID, GRID)."""
    centres = (torch.arange(GRID) + 0.5) / GRID
    x0, y0, x1, y1 = boxes[:, :, None].unbind(1)
    across, down = (x0 <= centres) & (centres < x1), (y0 <= centres) & (centres < y1)
    return down[:, :, None] & across[:, None, :]


def _share(values: Tensor, within: Tensor) -> Tensor:
    """How much of a map is inside; NaN where there is nothing in it, or nothing to be inside of."""
    return (values * within).sum().double() / values.sum() if within.any() else torch.tensor(torch.nan, dtype=torch.double)


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]).double())[0, 1]


def _nearest(levels: Sequence[Tensor], level: Tensor) -> Tensor:
    return min(levels, key=lambda other: abs(math.log(other.numel() / level.numel())))
