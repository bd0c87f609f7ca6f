"""Quantization within a budget of accuracy, and of time where asked: the search of
`quantization/choice/search.py` with real measures.

AP is PyTorch's with the integers that the engines compute with, on photographs of the training split that calibration did not
see; times are those of the layers on the engine (`costs.py`). In two passes:

1. arithmetic: every layer in integers or float, as little time as possible;
2. storage: layers whose arithmetic stayed float hold their weights in 4 bits, 8 bits or float, as few bytes as possible.

What changing between integers and floats costs at a layer's ends is in no layer's time. So where all layers in integers keep to
the budget too, both are measured as a whole, and the faster one is the answer.

The promise is about the photographs searched on. On others the drop is another by chance: with about a hundred photographs of
ten objects allow for 0.005 AP more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.utils.data import DataLoader, Subset

from leandetr.data.coco import CocoDataset, Split, collate
from leandetr.data.transforms import eval_transform
from leandetr.deployment.benchmark import Measurement, measure
from leandetr.deployment.costs import layer_costs
from leandetr.deployment.onnx import export_onnx
from leandetr.deployment.runtimes import PyTorchRuntime, open_runtime
from leandetr.detectors.detector import Detector
from leandetr.errors import UserError
from leandetr.evaluation import coco
from leandetr.quantization.choice.search import Assignment, Found, Table, search
from leandetr.quantization.choice.sensitivity import bytes_of
from leandetr.quantization.choice.sensitivity import measure as measure_layers
from leandetr.quantization.config import FLOAT, Scheme, Static, WeightOnly
from leandetr.quantization.quantize import quantize

STORED = {"int8 weights": WeightOnly(), "int4 weights": WeightOnly(bits=4)}
INTEGERS = "static"


@dataclass(frozen=True)
class Budget:
    """What may be lost and what must be reached.

    Args:
        max_ap_drop: in AP, a fraction: 0.005 is half a point.
        target_latency_ms: of one photograph on the engine, without post-processing; None for as fast as the budget allows.
        engine: "onnxruntime" or "openvino", whose operator times decide.
        held_out: photographs of the training split that AP is measured on; fewer where there are not so many.
        evaluations: at most about so many measurements of AP in each of the two passes.
    """

    max_ap_drop: float = 0.005
    target_latency_ms: float | None = None
    engine: str = "onnxruntime"
    held_out: int = 128
    evaluations: int = 16

    def __post_init__(self) -> None:
        if not 0 <= self.max_ap_drop < 1:
            raise UserError(f"max_ap_drop is {self.max_ap_drop}; give a fraction of 0 or more, such as 0.005 for half a point")
        if self.target_latency_ms is not None and self.target_latency_ms <= 0:
            raise UserError(f"target_latency_ms is {self.target_latency_ms}; give milliseconds above 0")


def quantize_within(detector: Detector, scheme: Static, split: Split, budget: Budget) -> tuple[Detector, dict[str, Any]]:
    """The detector quantized with `scheme` where that keeps to the budget, and what the search found.

    Args:
        detector: float.
        scheme: how the layers in integers are quantized, and with how many calibration images. Layers of its overrides are as
            these say; what that loses is taken from the budget.
        split: photographs with boxes; those that calibrate and those that judge are both taken from it, evenly spread.

    Returns:
        The quantized detector; and {"engine", "max_ap_drop", "images": photographs AP was measured on, "float_ap", "ap",
        "drop", "latency_ms", "float_latency_ms": of the whole, "speedup", "speedup_low", "speedup_high": over float, measured,
        "evaluations", "layers": [{"name", "choice", "errors": {candidate: error}, "milliseconds": {candidate: ms}}]}

    Raises:
        UserError: too few photographs, none with an object among those that judge, an unknown engine, overrides that lose more
            than the budget, or a target that cannot be met within it.
    """
    dataset = CocoDataset(split, eval_transform(detector.preprocessing), detector.class_map)
    if len(dataset) < 2:
        raise UserError(f"{split.annotations} has fewer than 2 images, and the search needs others than calibration; add some")
    scheme = replace(scheme, calibration_images=min(scheme.calibration_images, len(dataset) // 2))
    calibration = spread(range(len(dataset)), scheme.calibration_images)
    unseen = sorted(set(range(len(dataset))) - set(calibration))
    judges = Subset(dataset, spread(unseen, min(budget.held_out, len(unseen))))
    if not any(not annotation["iscrowd"] for annotation in _truth(dataset, judges)["annotations"]):
        raise UserError(f"{split.annotations}: the {len(judges)} images that are to judge hold no object; raise --held-out")
    batches = list(DataLoader(Subset(dataset, calibration), batch_size=8, collate_fn=collate))
    options: dict[str, Scheme] = {INTEGERS: scheme, **STORED}
    errors, sizes = measure_layers(detector, options, batches)

    def quantized(assignment: Assignment) -> Detector:
        if set(assignment.values()) == {FLOAT} and not scheme.overrides:
            return plain
        own = {INTEGERS: replace(scheme, overrides={}), FLOAT: FLOAT, **STORED}
        overrides = {**scheme.overrides, **{layer: own[choice] for layer, choice in assignment.items()}}
        return quantize(detector, replace(scheme, overrides=overrides), batches)

    plain = quantize(detector, WeightOnly(overrides={"*": FLOAT}))
    known: dict[tuple[str, ...], float] = {}

    def ap(assignment: Assignment) -> float:
        key = tuple(assignment[layer] for layer in sorted(assignment))
        if key not in known:
            known[key] = _ap(quantized(assignment), dataset, judges)
        return known[key]

    integers = quantize(detector, scheme, batches)
    costs = layer_costs({FLOAT: plain, INTEGERS: integers}, batches[0]["pixel_values"][:1], budget.engine)
    costs = {layer: found for layer, found in costs.items() if not scheme.overridden(layer)}
    rest = _rest(detector, split, costs, budget)
    given_ap = ap(dict.fromkeys(costs, FLOAT))
    float_ap = _ap(plain, dataset, judges) if scheme.overrides else given_ap
    left = budget.max_ap_drop - (float_ap - given_ap)
    if left < 0:
        raise UserError(f"the overrides alone lose more than {budget.max_ap_drop:g} AP; allow more loss or leave some out")
    found = search(
        costs,
        errors,
        ap,
        left,
        None if budget.target_latency_ms is None else budget.target_latency_ms - rest,
        evaluations=budget.evaluations,
    )
    stored = _store(found, quantized(found.assignment), errors, sizes, ap, left - found.drop, budget.evaluations)
    finals = {"mixed": stored.assignment}
    everything = dict.fromkeys(costs, INTEGERS)
    if float_ap - ap(everything) <= budget.max_ap_drop:
        finals["all"] = everything
    detectors = {name: quantized(assignment) for name, assignment in finals.items()}
    whole = whole_latencies({FLOAT: detector} | detectors, split, budget.engine)
    best = min(detectors, key=lambda name: whole[name]["latency_ms"])
    rows = [
        {"name": layer, "choice": choice, "errors": errors[layer], "milliseconds": costs[layer]}
        for layer, choice in finals[best].items()
    ]
    best_ap = ap(finals[best])
    return detectors[best], {
        "engine": budget.engine,
        "max_ap_drop": budget.max_ap_drop,
        "images": len(judges),
        "float_ap": float_ap,
        "ap": best_ap,
        "drop": float_ap - best_ap,
        **{key: whole[best][key] for key in ("latency_ms", "speedup", "speedup_low", "speedup_high")},
        "float_latency_ms": whole[FLOAT]["latency_ms"],
        "evaluations": len(known),
        "layers": rows,
    }


def spread(choices: Sequence[int], count: int) -> list[int]:
    """`count` of the choices, evenly spread."""
    return [choices[index] for index in torch.linspace(0, len(choices) - 1, count).round().long().tolist()]


def _store(
    found: Found,
    chosen: Detector,
    errors: Table,
    sizes: Table,
    ap: Callable[[Assignment], float],
    left: float,
    evaluations: int,
) -> Found:
    """The second pass: how the layers that were left float hold their weights, for at most `left` AP more."""
    fixed = {layer: choice for layer, choice in found.assignment.items() if choice != FLOAT}
    costs = {
        layer: {FLOAT: bytes_of(chosen.model.get_submodule(layer))}
        | {name: size for name, size in sizes[layer].items() if name in STORED}
        for layer, choice in found.assignment.items()
        if choice == FLOAT
    }
    if not costs:
        return found
    best = search(costs, errors, lambda stored: ap(fixed | stored), left, evaluations=evaluations)
    order = {layer: (fixed | best.assignment)[layer] for layer in found.assignment}
    return replace(best, assignment=order)


def _ap(detector: Detector, dataset: CocoDataset, images: Subset) -> float:
    """AP on some of a data set's images."""
    runtime, results = PyTorchRuntime(detector), []
    for batch in DataLoader(images, batch_size=8, collate_fn=collate):
        for found, target in zip(runtime(batch), batch["labels"], strict=True):
            results += coco.to_results(found, int(target["image_id"]), detector.class_map)
    return coco.evaluate_results(_truth(dataset, images), results).ap


def _truth(dataset: CocoDataset, images: Subset) -> dict[str, Any]:
    """The ground truth of some of a data set's images."""
    truth, ids = dataset.ground_truth(), {int(dataset.image_ids[index]) for index in images.indices}
    return truth | {
        "images": [image for image in truth["images"] if image["id"] in ids],
        "annotations": [annotation for annotation in truth["annotations"] if annotation["image_id"] in ids],
    }


def whole_latencies(detectors: Mapping[str, Detector], split: Split, engine: str) -> dict[str, Measurement]:
    """What each detector's exported file takes on the engine, measured in turn; speed-ups are over the first."""
    with TemporaryDirectory() as folder:
        files = [export_onnx(detector, Path(folder) / f"{name}.onnx") for name, detector in detectors.items()]
        measured = measure([open_runtime(file, engine=engine) for file in files], split, repeats=30)
    return dict(zip(detectors, measured, strict=True))


def _rest(detector: Detector, split: Split, costs: dict[str, dict[str, float]], budget: Budget) -> float:
    """Milliseconds of the float model outside of the searched layers, where a target makes that matter."""
    if budget.target_latency_ms is None:
        return 0.0
    whole = whole_latencies({FLOAT: detector}, split, budget.engine)[FLOAT]
    return max(0.0, whole["latency_ms"] - sum(found[FLOAT] for found in costs.values()))
