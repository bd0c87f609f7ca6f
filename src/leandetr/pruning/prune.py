"""Units of a whole detector ranked together, the least important left out in one shot until the goal is reached."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from torch import Tensor
from torch.utils.data import Subset

from leandetr.analysis.snapshots import spread
from leandetr.data.batches import Loader
from leandetr.data.coco import CocoDataset, Split
from leandetr.data.transforms import eval_transform
from leandetr.detectors.attention_heads import whole_attentions
from leandetr.detectors.detector import Detector
from leandetr.detectors.multiply_adds import multiply_adds
from leandetr.detectors.prunable import prunable_units, pruned_units
from leandetr.detectors.trim import check_float
from leandetr.detectors.units import Structure, Units
from leandetr.errors import OutOfReach, UserError
from leandetr.progress import counting
from leandetr.pruning.config import Pruning
from leandetr.pruning.goal import least_for_latency, least_for_macs
from leandetr.pruning.importance import costs, magnitude, taylor
from leandetr.pruning.order import Group, order_of, staying

WORDS: dict[Structure, str] = {"ffn": "feed-forward layers", "heads": "attention heads", "channels": "inner channels"}


def prune_units(
    detector: Detector, split: Split, pruning: Pruning, name: str = "the detector"
) -> tuple[Detector, dict[str, Any]]:
    """The pruned detector, and what was left out.

    Args:
        detector: float, in evaluation mode; it is left as it is.
        split: photographs with boxes, for Taylor's importance, and the first for the size that is counted at.
        name: of the detector, in sentences and in the result.

    Returns:
        The detector, not recovered by any training; and {"model", "goal": its name and value, "structures", "importance",
        "images": that the loss was computed on, "image_size": (height, width) that multiply-adds are counted at, "parameters",
        "multiply_adds": of the whole, each {"before", "after"}, "layers": [{"name", "structure", "width": units before,
        "kept"}], "left_out": sentences; for a latency what `least_for_latency` measured}.

    Raises:
        UserError: a quantized detector; a split without images; a family in which none of the structures can be pruned; a goal
            that cannot be met.
    """
    check_float(detector, name, "prune")
    detector = copy.deepcopy(detector).requires_grad_(False)
    found, left_out = what_can_leave(detector, pruning.structures, name)
    loader = _loader(detector, split, pruning)
    height, width = next(iter(loader))["pixel_values"].shape[-2:]
    groups = _ranked(detector, found, loader, (height, width), pruning)

    @cache
    def macs(count: int) -> int:
        return multiply_adds(keep_units(detector, staying(found, groups[:count])).model, (height, width))

    measured: dict[str, Any] = {}
    if pruning.target_latency_ms is None:
        count = least_for_macs(pruning, len(groups), macs)
    else:
        count, measured = least_for_latency(
            pruning, len(groups), lambda count: keep_units(detector, staying(found, groups[:count])), split
        )
    kept = staying(found, groups[:count])
    pruned = keep_units(detector, kept)
    return pruned.requires_grad_(True), {
        "model": name,
        "goal": pruning.goal,
        "structures": list(pruning.structures),
        "importance": pruning.importance,
        "images": len(loader) if pruning.importance == "taylor" else 0,
        "image_size": [height, width],
        "parameters": {"before": _parameters(detector), "after": _parameters(pruned)},
        "multiply_adds": {"before": macs(0), "after": macs(count)},
        **measured,
        "layers": [
            {"name": key, "structure": units.structure, "width": units.count, "kept": len(kept[key])}
            for key, units in found.items()
        ],
        "left_out": left_out,
    }


def keep_units(detector: Detector, kept: Mapping[str, Tensor]) -> Detector:
    """A copy that has only these units, as its configuration says. kept: name -> indices (K,) of those that stay."""
    detector = copy.deepcopy(detector)
    found, counts = prunable_units(detector.model), pruned_units(detector.config)
    for name, units in kept.items():
        if len(units) < found[name].count:
            found[name].keep(units)
            counts[name] = len(units)
    detector.config.pruned_units = counts
    return detector


def what_can_leave(detector: Detector, structures: Sequence[Structure], name: str) -> tuple[dict[str, Units], list[str]]:
    """Units by name, and sentences about what cannot leave. Raises UserError where none can."""
    found, kind = prunable_units(detector.model, structures), detector.config.model_type
    there = {units.structure for units in found.values()}
    left_out = [f"{WORDS[each]}: none of this {kind} can be pruned" for each in structures if each not in there]
    if not found:
        raise OutOfReach(f"{name} cannot be pruned: no {' or '.join(WORDS[each] for each in structures)} of a {kind} can")
    stay = whole_attentions(detector.model) if "heads" in there else []
    if stay:
        left_out.append(f"attention heads of {len(stay)} layers, such as {stay[0]}: all must stay in a {kind}")
    return found, left_out


def _loader(detector: Detector, split: Split, pruning: Pruning) -> Loader:
    """The photographs that judge, one a batch."""
    dataset = CocoDataset(split, eval_transform(detector.preprocessing), detector.class_map)
    chosen = spread(len(dataset), pruning.calibration_images)
    if not chosen:
        raise UserError(f"{split.annotations} has no images, and pruning needs some to judge by; add some")
    return Loader(Subset(dataset, chosen), 1)


def _ranked(
    detector: Detector, found: Mapping[str, Units], loader: Loader, image_size: tuple[int, int], pruning: Pruning
) -> list[Group]:
    """The groups in the order in which they leave."""
    together = {name: units.together for name, units in found.items()}
    if pruning.importance == "magnitude":
        return order_of(magnitude(found), dict.fromkeys(found, 1.0), together)
    with counting("images", len(loader)) as step:
        importance = taylor(detector, found, loader, step)
    return order_of(importance, costs(detector.model, found, image_size), together)


def _parameters(detector: Detector) -> int:
    return sum(parameter.numel() for parameter in detector.parameters())
