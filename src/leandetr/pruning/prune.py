"""Units of all feed-forward layers ranked together, the least important left out, in one shot.

Importance is divided by its mean in the layer, since gradients and weights of layers differ in size. Units leave a layer by
eights, so that widths stay multiples of what integer kernels compute at once.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset

from leandetr.analysis.snapshots import spread
from leandetr.data.batches import Loader
from leandetr.data.coco import CocoDataset, Split
from leandetr.data.transforms import eval_transform
from leandetr.deployment.progress import counting
from leandetr.detectors.detector import Detector
from leandetr.detectors.feed_forward import feed_forward_layers, pruned_widths
from leandetr.detectors.multiply_adds import multiply_adds
from leandetr.detectors.trim import check_float
from leandetr.errors import UserError
from leandetr.pruning.config import Pruning
from leandetr.pruning.importance import magnitude, taylor, tokens

TOGETHER = 8  # units
NOT_YET = "attention heads and the backbone's channels are not pruned yet"


def prune_units(
    detector: Detector, split: Split, pruning: Pruning, name: str = "the detector"
) -> tuple[Detector, dict[str, Any]]:
    """The pruned detector, and what was left out.

    Args:
        detector: float, in evaluation mode; it is left as it is.
        split: photographs with boxes, for Taylor's importance, and the first for the size that is counted at.
        name: of the detector, in sentences and in the result.

    Returns:
        The detector, not recovered by any training; and {"model", "ratio", "importance", "images": that the loss was computed
        on, "image_size": (height, width) that multiply-adds are counted at, "parameters", "multiply_adds", "feed_forward": the
        multiply-adds of the feed-forward layers, each {"before", "after"}, "layers": [{"name", "width": units before, "kept"}],
        "left_out": sentences}.

    Raises:
        UserError: a quantized detector; a split without images; a ratio at which a layer would have no unit left.
    """
    check_float(detector, name, "prune")
    detector = copy.deepcopy(detector).requires_grad_(False)
    dataset = CocoDataset(split, eval_transform(detector.preprocessing), detector.class_map)
    chosen = spread(len(dataset), pruning.calibration_images)
    if not chosen:
        raise UserError(f"{split.annotations} has no images, and pruning needs some to judge by; add some")
    loader = Loader(Subset(dataset, chosen), 1)
    height, width = next(iter(loader))["pixel_values"].shape[-2:]
    layers = feed_forward_layers(detector.model)
    if not layers:
        raise UserError(f"no feed-forward layers of {name}, a {detector.config.model_type}, are known; it cannot be pruned")
    costs = {key: count * _products(detector, key) for key, count in tokens(detector, (height, width)).items()}
    if pruning.importance == "taylor":
        with counting("images", len(chosen)) as step:
            importance = taylor(detector, loader, step)
    else:
        importance = magnitude(detector)
    kept = choose(importance, costs, pruning.ratio)
    found: dict[str, Any] = {
        "model": name,
        "ratio": pruning.ratio,
        "importance": pruning.importance,
        "images": len(chosen) if pruning.importance == "taylor" else 0,
        "image_size": [height, width],
    }
    before = _measured(detector, (height, width), costs)
    found["layers"] = [{"name": key, "width": layers[key].width, "kept": len(kept[key])} for key in layers]
    detector = keep_units(detector, kept)
    after = _measured(detector, (height, width), costs)
    found |= {what: {"before": before[what], "after": after[what]} for what in before}
    return detector.requires_grad_(True), found | {"left_out": [NOT_YET]}


def keep_units(detector: Detector, kept: Mapping[str, Tensor]) -> Detector:
    """A copy whose feed-forward layers have only these units, as its configuration says. kept: layer -> indices (K,)."""
    detector = copy.deepcopy(detector)
    widths = pruned_widths(detector.config)
    for name, layer in feed_forward_layers(detector.model).items():
        if len(kept[name]) < layer.width:
            layer.keep(kept[name].to(layer.out.weight.device))
            widths[name] = layer.width
    detector.config.pruned_ffn = widths
    return detector


def choose(importance: Mapping[str, Tensor], costs: Mapping[str, int], ratio: float) -> dict[str, Tensor]:
    """Layer -> the units that stay, in their order.

    The least important leave until `ratio` of all multiply-adds has left.

    Args:
        importance: layer -> (K,), at least 0.
        costs: layer -> multiply-adds of one unit.
        ratio: between 0 and 1.

    Raises UserError where a layer would have none left.
    """
    ranked = []
    for name, values in importance.items():
        values = values / values.mean().clamp(min=torch.finfo(values.dtype).tiny)
        order = values.argsort(stable=True)
        first = len(order) % TOGETHER  # what is over leaves first
        groups = [group for group in order.tensor_split(tuple(range(first, len(order), TOGETHER))) if len(group)]
        ranked += [(float(values[group].mean()), name, group) for group in groups]
    total = sum(len(values) * costs[name] for name, values in importance.items())
    stays = {name: torch.ones(len(values), dtype=torch.bool) for name, values in importance.items()}
    left = 0
    for _, name, group in sorted(ranked, key=lambda entry: entry[0]):
        if left >= ratio * total:
            break
        stays[name][group] = False
        if not stays[name].any():
            most = math.floor(1000 * left / total) / 1000
            raise UserError(f"at a ratio of {ratio:g} no hidden unit would be left in {name}; ask for at most {most:g}")
        left += len(group) * costs[name]
    return {name: mask.nonzero().flatten() for name, mask in stays.items()}


def _products(detector: Detector, name: str) -> int:
    """Of one hidden unit and token."""
    layer = feed_forward_layers(detector.model)[name]
    return sum(linear.in_features for linear in layer.into) + layer.out.out_features


def _measured(detector: Detector, size: tuple[int, int], costs: Mapping[str, int]) -> dict[str, int]:
    layers = feed_forward_layers(detector.model)
    return {
        "parameters": sum(parameter.numel() for parameter in detector.parameters()),
        "multiply_adds": multiply_adds(detector.model, size),
        "feed_forward": sum(costs[name] * layer.width for name, layer in layers.items()),
    }
