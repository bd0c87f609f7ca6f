"""Which layers suffer most from integers: each layer's relative squared error, alone, under each way of quantizing it.

    error = sum (y - y_quantized)^2 / sum y^2        (`quantization/choice/sensitivity.py`)

0.01 is a signal 20 dB above its rounding noise. It is the layer's own output that is compared; how much of it reaches the
detections is what the budget search measures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from leandetr.analysis import figures
from leandetr.analysis.snapshots import loader_of, opened, progress
from leandetr.data.coco import Split
from leandetr.files import write_json
from leandetr.quantization.choice.sensitivity import measure_layers
from leandetr.quantization.config import Scheme, Static, WeightOnly

SHOWN = 40  # layers in the picture; the JSON has all
NOTHING = 1e-9  # where bars begin: an error of zero has no logarithm


def sensitivity(model: str | Path, split: Split, out: Path, images: int | None = 32) -> dict[str, Any]:
    """Write `sensitivity.json` and `sensitivity.png` into `out` and return what is in the JSON.

    Args:
        model: a saved float detector.
        split: photographs, for calibration and measurement both.
        images: how many of them, evenly spread; None for all.

    Returns:
        {"model", "images": n, "candidates": their names, "layers": [{"name", "errors": {candidate: error}}]}, the layers that a
        candidate quantizes in the model's order.

    Raises:
        UserError: as `quantize`; the model is quantized already.
    """
    detector = opened(model)
    batches = list(progress(loader_of(detector, split, images)))
    count = sum(len(batch["pixel_values"]) for batch in batches)
    candidates: dict[str, Scheme] = {
        "8-bit weights": WeightOnly(),
        "4-bit weights": WeightOnly(bits=4, calibration_images=0),
        "8-bit weights and inputs": Static(calibration_images=count),
    }
    errors, _ = measure_layers(detector, candidates, batches)
    order = {name: place for place, (name, _) in enumerate(detector.model.named_modules())}
    layers = [{"name": name, "errors": errors[name]} for name in sorted(errors, key=lambda name: order.get(name, 0))]
    found = {"model": str(model), "images": count, "candidates": list(candidates), "layers": layers}
    write_json(Path(out) / "sensitivity.json", found)
    draw(found, Path(out) / "sensitivity.png")
    return found


def draw(found: dict[str, Any], path: Path) -> None:
    """A bar a layer and candidate, the layers with the largest error on top."""
    layers = sorted(found["layers"], key=lambda layer: max(layer["errors"].values()), reverse=True)[:SHOWN]
    title = "Which layers suffer most from integers"
    caption = (
        "Squared error of a layer's output relative to the output's own square, every layer alone with the float model's "
        f"input, on {found['images']} images. The {len(layers)} worst of {len(found['layers'])} layers. A layer without a bar "
        "of a kind stays float under it."
    )
    figure, axes = figures.panels(title, caption, 1, 1, (10, 1.8 + 0.24 * len(layers)))
    panel, places = axes[0, 0], np.arange(len(layers))
    height = 0.8 / len(found["candidates"])
    for index, (candidate, colour) in enumerate(zip(found["candidates"], figures.LINES)):
        widths = [max(layer["errors"].get(candidate, NOTHING), NOTHING) for layer in layers]
        panel.barh(places + (index - 1) * height, widths, height, color=colour, label=candidate)
    panel.set_xscale("log")
    panel.set_xlim(left=max(NOTHING, min(min(layer["errors"].values()) for layer in layers) / 2))
    panel.set_yticks(places, [layer["name"].removeprefix("model.") for layer in layers], fontsize=7)
    panel.set_ylim(len(layers) - 0.5, -0.5)
    panel.grid(axis="y", visible=False)
    figures.label(panel, "", "relative squared error of the layer's output")
    figures.legend_beside(figure, panel)
    figures.save(figure, path)
