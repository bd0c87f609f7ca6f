"""Which layers can do with fewer units: the family's own loss while the least important of one layer's are zero."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import Tensor

from leandetr.analysis import figures
from leandetr.analysis.snapshots import loader_of, opened
from leandetr.data.batches import Loader
from leandetr.data.coco import Split
from leandetr.detectors.detector import Detector
from leandetr.detectors.multiply_adds import multiply_adds
from leandetr.detectors.trim import check_float
from leandetr.detectors.units import STRUCTURES, Structure, Units
from leandetr.files import write_json
from leandetr.progress import counting
from leandetr.pruning.importance import costs, taylor
from leandetr.pruning.prune import what_can_leave

SHARES = (0.25, 0.5, 0.75)  # of a layer's units that leave
SHOWN = 40  # layers in the picture; the JSON has all


def structures(
    model: str | Path, split: Split, out: Path, images: int | None = 32, kinds: Sequence[Structure] = STRUCTURES
) -> dict[str, Any]:
    """Write `structures.json` and `structures.png` into `out` and return what is in the JSON.

    Args:
        model: a saved float detector.
        split: photographs with boxes.
        images: how many of them, evenly spread; None for all.
        kinds: of units, see `Pruning`.

    Returns:
        {"model", "images": n, "loss": of the whole detector, a mean over images, "left_out": sentences, "layers": [{"name",
        "structure", "width": units, "multiply_adds": the share of the detector's that they have, "losses": [[a share of them
        that has left, the loss then]]}]}, in the model's order. Units leave by Taylor's importance on the same photographs, the
        least first, rounded down.

    Raises:
        UserError: a quantized detector, or one of which nothing can leave.
    """
    detector = opened(model).requires_grad_(False)
    check_float(detector, str(model), "prune")
    found, left_out = what_can_leave(detector, kinds, str(model))
    loader = loader_of(detector, split, images, batch_size=1)
    height, width = next(iter(loader))["pixel_values"].shape[-2:]
    whole, each = multiply_adds(detector.model, (height, width)), costs(detector.model, found, (height, width))
    with counting("images", len(loader)) as step:
        importance = taylor(detector, found, loader, step)
    layers = []
    with counting("layers", len(found)) as step:
        for name, units in found.items():
            layers.append(
                {
                    "name": name,
                    "structure": units.structure,
                    "width": units.count,
                    "multiply_adds": each[name] * units.count / whole,
                    "losses": [[share, _without(detector, units, importance[name], share, loader)] for share in SHARES],
                }
            )
            step()
    result = {"model": str(model), "images": len(loader), "loss": _loss(detector, loader), "left_out": left_out}
    result["layers"] = layers
    write_json(Path(out) / "structures.json", result)
    draw(result, Path(out) / "structures.png")
    return result


def _without(detector: Detector, units: Units, importance: Tensor, share: float, loader: Loader) -> float:
    """The loss without the least important share of one layer's units."""
    kept = torch.ones_like(importance)
    kept[importance.argsort()[: math.floor(share * units.count)]] = 0
    handles = units.multiply(kept.to(next(detector.parameters()).device))
    try:
        return _loss(detector, loader)
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _loss(detector: Detector, loader: Loader) -> float:
    device, losses = next(detector.parameters()).device, []
    for batch in loader:
        moved = send_to_device(batch, device)
        losses.append(float(detector(moved["pixel_values"], moved["pixel_mask"], moved["labels"]).loss))
    return sum(losses) / len(losses)


def worst_first(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The layers of a result, those first whose loss without half of their units is the highest."""
    return sorted(found["layers"], key=lambda layer: -dict(map(tuple, layer["losses"]))[0.5])


def draw(found: dict[str, Any], path: Path) -> None:
    """A bar a layer and share, the most sensitive layers on top."""
    layers, whole = worst_first(found)[:SHOWN], found["loss"]
    title = "Which layers can do with fewer units"
    caption = (
        f"The detector's own loss, {whole:.3g} with all units, while the least important ones of one layer alone are "
        f"multiplied by zero, on {found['images']} images; nothing is trained. The {len(layers)} most sensitive layers of "
        f"{len(found['layers'])}; in brackets their share of the multiply-adds."
    )
    figure, axes = figures.panels(title, caption, 1, 1, (10, 1.8 + 0.24 * len(layers)))
    panel, places = axes[0, 0], np.arange(len(layers))
    height = 0.8 / len(SHARES)
    for index, (share, colour) in enumerate(zip(SHARES, figures.LINES)):
        widths = [100 * (layer["losses"][index][1] / whole - 1) for layer in layers]
        panel.barh(places + (index - 1) * height, widths, height, color=colour, label=f"{share:.0%} of the units less")
    names = [f"{layer['name'].removeprefix('model.')}, {layer['structure']} ({layer['multiply_adds']:.1%})" for layer in layers]
    panel.set_yticks(places, names, fontsize=7)
    panel.set_ylim(len(layers) - 0.5, -0.5)
    panel.grid(axis="y", visible=False)
    figures.label(panel, "", "more loss, %")
    figures.legend_beside(figure, panel)
    figures.save(figure, path)
