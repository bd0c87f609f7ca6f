"""The information plane of a detector along its training (Q-DETR, eq. 2.27 and figure 2.12b).

A bottleneck forgets what it does not need of the image X (a small I(X; E) with the encoder's features E) and keeps what the
objects y need (a large I(y; E, q), q being the queries). Neither has a closed form; what is estimated, see
`mutual_information.py` for the estimators and their bias, are lower bounds of both:

    I(X; E)     between a cell's features and its pixels, 4 x 4 means of the colours inside of it, over random cells; each of
                the two by its first four principal components; the mean over the feature levels
    I(y; E, q)  = I(class; state) + I(box; answered box | class) over the objects, each with the query that the detector's
                matching gives it: what the query's state after the last decoder layer (four principal components) tells of
                the object's class, and the query's box of the object's box

Numbers are comparable between detectors on the same images. Their absolute height is not the detectors': it depends on the
number of samples and components.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from leandetr.analysis import figures, query_distributions
from leandetr.analysis.mutual_information import (
    NEIGHBOURS,
    Estimate,
    class_information,
    entropy,
    estimate,
    mutual_information,
    principal,
)
from leandetr.analysis.query_distributions import Distributions, distributions, listening
from leandetr.analysis.snapshots import answer, loader_of, opened, over_training, progress, spread
from leandetr.data.coco import Split
from leandetr.detectors.detector import Detector
from leandetr.errors import UserError
from leandetr.files import write_json
from leandetr.losses import HungarianMatcher, pad_targets

COMPONENTS = 4
SAMPLES = 2000  # of cells a level, and of objects: estimators compare every pair
FEWEST = 50  # objects, below which an estimate says nothing
PATCH = 4


@dataclass
class Samples:
    """What is kept of all images (their number first): a level's cells, pixels (n, 48) and features (n, D); the M objects'
    states (M, D), answered and true boxes (M, 4), classes (M,)."""

    images: int
    pixels: list[Tensor]
    features: list[Tensor]
    states: Tensor
    found: Tensor
    boxes: Tensor
    classes: Tensor


def information(models: Sequence[str | Path], split: Split, out: Path, images: int | None = None) -> dict[str, Any]:
    """Write `information.json`, `information.png` and `queries.png` into `out` and return what is in the JSON.

    Args:
        models: saved detectors; a training with kept epochs stands for all of them, and is a line in the plane.
        split: the images and their objects.
        images: how many of them, evenly spread; all by default.

    Returns:
        {"images": n, "objects": their number, "class_entropy": bits, "estimator": its name and settings, "models": [{"name",
        "run", "path", "epoch", "input": I(X; E), "output": I(y; E, q) and "class" and "box", its parts, each {"bits", "error":
        standard error, "shuffled": the estimator's answer where the truth is 0}, "levels": I(X; E) of every feature level,
        "queries": see `Distributions.as_dict`, None where the cross-attention's queries cannot be reached}]}

    Raises:
        UserError: fewer than 50 objects.
    """
    rows: list[dict[str, Any]] = []
    heard: dict[str, Distributions] = {}
    samples: Samples | None = None
    for snapshot in over_training(models):
        samples, queries = collect(opened(snapshot.path), split, images)
        if len(samples.classes) < FEWEST:
            raise UserError(
                f"the images of {split.annotations} hold {len(samples.classes)} objects, too few to estimate information from; "
                f"name a split, or a limit, with at least {FEWEST}"
            )
        rows.append(snapshot.as_dict() | estimates(samples) | {"queries": queries and queries.as_dict()})
        if queries is not None:
            heard[snapshot.run] = queries  # the last of a run replaces the others
    if samples is None:
        raise UserError("there is no detector to analyse; name at least one")
    found = {
        "images": samples.images,
        "objects": len(samples.classes),
        "class_entropy": entropy(torch.bincount(samples.classes)),
        "estimator": {"name": "KSG 1, Ross", "neighbours": NEIGHBOURS, "components": COMPONENTS, "samples": SAMPLES},
        "models": rows,
    }
    write_json(Path(out) / "information.json", found)
    draw(found, Path(out) / "information.png")
    if heard:
        query_distributions.draw(heard, Path(out) / "queries.png")
    return found


@torch.inference_mode()
def collect(detector: Detector, split: Split, images: int | None) -> tuple[Samples, Distributions | None]:
    """What the estimators need, from `images` images spread over a split (None: all), and the queries of the decoder's
    cross-attention, None where they cannot be read."""
    matcher = HungarianMatcher.from_config(detector.config, detector.head)
    loader = loader_of(detector, split, images, batch_size=1)  # each image without padding
    count = len(loader)
    cells, objects = [], []
    with listening(detector) as heard:
        for number, batch in enumerate(progress(loader)):
            output = answer(detector, batch)
            generator = torch.Generator().manual_seed(number)
            cells.append(
                [pick(level, batch["pixel_values"], math.ceil(SAMPLES / count), generator) for level in output.features]
            )
            targets = pad_targets(batch["labels"])
            pairs = matcher(output.logits[-1:], output.boxes[-1:], targets)
            answered = pairs.of_queries(output.hidden[-1:]), pairs.of_queries(output.boxes[-1:])
            objects.append((*answered, pairs.of_targets(targets.boxes), pairs.of_targets(targets.classes)))
        queries = distributions(heard, detector)
    levels = [[torch.cat(parts) for parts in zip(*level)] for level in zip(*cells)]
    kept = [torch.cat(parts) for parts in zip(*objects)]
    kept = [part[spread(len(part), SAMPLES)] for part in kept]
    return Samples(count, [level[0] for level in levels], [level[1] for level in levels], *kept), queries


def pick(level: Tensor, pixels: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random cells of a (1, D, h, w) map over (1, 3, H, W) pixels -> their pixels (n, 3 * 16) and their features (n, D)."""
    height, width = level.shape[-2:]
    chosen = torch.randperm(height * width, generator=generator)[:count]
    colours = F.adaptive_avg_pool2d(pixels, (PATCH * height, PATCH * width))
    patches = F.unfold(colours, PATCH, stride=PATCH)  # (1, 48, h w)
    return patches[0, :, chosen].T, level.flatten(2)[0, :, chosen].T


def estimates(samples: Samples) -> dict[str, Any]:
    """A detector's numbers in the result of `information`."""
    levels = [
        estimate(mutual_information, principal(pixels, COMPONENTS), principal(features, COMPONENTS))
        for pixels, features in zip(samples.pixels, samples.features)
    ]
    of_class = estimate(class_information, principal(samples.states, COMPONENTS), samples.classes)
    truth = torch.cat([samples.boxes, samples.classes[:, None].to(samples.boxes)], 1)
    of_box = estimate(box_information, samples.found, truth)
    return {
        "input": as_dict(combined(levels, 1 / len(levels))),
        "output": as_dict(combined([of_class, of_box])),
        "class": as_dict(of_class),
        "box": as_dict(of_box),
        "levels": [as_dict(level) for level in levels],
    }


def box_information(found: Tensor, truth: Tensor) -> float:
    """I(box; answered box | class) in bits: (n, 4) answered boxes, and (n, 5) true boxes with their classes. A class with too
    few objects for an estimate counts as none."""
    total = 0.0
    for number in truth[:, 4].unique():
        own = truth[:, 4] == number
        if own.sum() > NEIGHBOURS:
            total += mutual_information(found[own], truth[own, :4]) * own.double().mean().item()
    return total


def combined(parts: Sequence[Estimate], weight: float = 1.0) -> Estimate:
    """The weighted sum of independent estimates."""
    return Estimate(
        weight * sum(part.bits for part in parts),
        weight * math.hypot(*(part.error for part in parts)),
        weight * sum(part.shuffled for part in parts),
    )


def as_dict(found: Estimate) -> dict[str, float | None]:
    """For JSON, which has no NaN or infinity: None stands for them."""
    return {name: value if math.isfinite(value) else None for name, value in asdict(found).items()}


def draw(found: dict[str, Any], path: Path) -> None:
    """The information plane of what was written as JSON, as a PNG."""
    rows = found["models"]
    title = "The information plane: what features know of the image, what queries know of the objects"
    caption = (
        f"Lower bounds of mutual information, {found['images']} images, {found['objects']} objects; nearest-neighbour "
        f"estimates (KSG, Ross; k = {NEIGHBOURS}) of {COMPONENTS} principal components. Strong dependence is underestimated, "
        "more so the fewer the samples: compare points, not heights. Bars: one standard error. Left: a line is a training, its "
        "numbers are epochs, a star the detector it ended with (the best by AP); up is better, left is more compressed. Right: "
        "the two parts of the left's height; a query can tell of the class at most the classes' entropy (dashed)."
    )
    size = (11.5, max(5.2, 0.24 * len(rows) + 2.6))
    figure, axes = figures.panels(title, caption, 1, 2, size, width_ratios=[1.35, 1])
    plane, parts = axes[0]
    runs = list(dict.fromkeys(row["run"] for row in rows))
    for run, colour in zip(runs, figures.colours([None] * len(runs))):
        own = [row for row in rows if row["run"] == run]
        kept = [row for row in own if row["epoch"] is not None]
        x, y = ([row[side]["bits"] for row in kept] for side in ("input", "output"))
        plane.plot(x, y, color=colour, linewidth=1.2, alpha=0.7)
        for row in own:
            at = row["input"]["bits"], row["output"]["bits"]
            errors = [row[side]["error"] or 0 for side in ("output", "input")]
            ended = row["epoch"] is None
            told = {"label": run} if row is own[-1] else {}
            plane.errorbar(*at, *errors, fmt="*" if ended else "o", ms=12 if ended else 4, color=colour, elinewidth=0.7, **told)
            if not ended:
                plane.annotate(str(row["epoch"]), at, (4, 4), textcoords="offset points", fontsize=7, color=colour)
    plane.margins(0.15)
    plane.legend(loc="best", fontsize=8)
    figures.label(
        plane, "information plane", "I(X; E), features about the image, bits", "I(y; E, q), queries about the objects, bits"
    )
    names, places = [row["name"] for row in rows], range(len(rows))
    widths = {part: [max(0.0, row[part]["bits"]) for row in rows] for part in ("class", "box")}
    parts.barh(places, widths["class"], color=figures.LINES[0], label="class")
    parts.barh(places, widths["box"], left=widths["class"], color=figures.LINES[5], label="box, given the class")
    parts.axvline(found["class_entropy"], color="#444444", linestyle="--", linewidth=1)
    parts.set_yticks(places, names)
    parts.invert_yaxis()
    parts.grid(visible=False, axis="y")
    parts.legend(loc="lower right", bbox_to_anchor=(1, 0.99), ncols=2, fontsize=8)
    figures.label(parts, "what the queries know", "bits an object")
    figures.save(figure, path)
