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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import Subset

from leandetr.data.batches import Loader
from leandetr.data.coco import CocoDataset, Split
from leandetr.data.transforms import eval_transform
from leandetr.deployment.costs import layer_costs
from leandetr.deployment.latency import on_cpu, whole_latencies
from leandetr.deployment.pytorch import PyTorchRuntime
from leandetr.deployment.runtime import Runtime
from leandetr.detectors.detector import Detector
from leandetr.errors import UserError
from leandetr.evaluation import coco
from leandetr.quantization.choice.search import Choices, Found, search
from leandetr.quantization.choice.sensitivity import bytes_of, measure_layers
from leandetr.quantization.config import FLOAT, Static, WeightOnly
from leandetr.quantization.quantize import quantize
from leandetr.structures import Batch

STORED = {"int8 weights": WeightOnly(), "int4 weights": WeightOnly(bits=4, calibration_images=0)}
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
    passes = _Passes(detector, scheme, split, budget)
    mixed = passes.storage(passes.arithmetic())
    return passes.fastest({"mixed": mixed} | passes.all_in_integers())


class _Passes:
    """The two passes over one detector, and what both measure with. AP of a choice is measured once."""

    def __init__(self, detector: Detector, scheme: Static, split: Split, budget: Budget) -> None:
        self.detector, self.split, self.budget = detector, split, budget
        self.dataset = CocoDataset(split, eval_transform(detector.preprocessing), detector.class_map)
        self.scheme, self.batches, self.judges = self._share_images(scheme)
        self.errors, self.sizes = measure_layers(detector, {INTEGERS: self.scheme, **STORED}, self.batches)
        self.plain = quantize(detector, WeightOnly(overrides={"*": FLOAT}))
        self.known: dict[tuple[str, ...], float] = {}
        candidates = {FLOAT: self.plain, INTEGERS: quantize(detector, self.scheme, self.batches)}
        costs = layer_costs(on_cpu(candidates), self.batches[0]["pixel_values"][:1], budget.engine)
        self.costs = {layer: found for layer, found in costs.items() if not scheme.overridden(layer)}
        given_ap = self.ap(dict.fromkeys(self.costs, FLOAT))
        self.float_ap = self._measured_ap(self.plain) if scheme.overrides else given_ap
        self.left = budget.max_ap_drop - (self.float_ap - given_ap)  # by the overrides
        if self.left < 0:
            raise UserError(f"the overrides alone lose more than {budget.max_ap_drop:g} AP; allow more loss or leave some out")

    def _share_images(self, scheme: Static) -> tuple[Static, list[Batch], Subset]:
        """The scheme with as many calibration images as there can be, these in batches, and the images that judge."""
        dataset, annotations = self.dataset, self.split.annotations
        if len(dataset) < 2:
            raise UserError(f"{annotations} has fewer than 2 images, and the search needs others than calibration; add some")
        scheme = replace(scheme, calibration_images=min(scheme.calibration_images, len(dataset) // 2))
        calibration = spread(range(len(dataset)), scheme.calibration_images)
        unseen = sorted(set(range(len(dataset))) - set(calibration))
        judges = Subset(dataset, spread(unseen, min(self.budget.held_out, len(unseen))))
        if not any(not annotation["iscrowd"] for annotation in truth_of(dataset, judges)["annotations"]):
            raise UserError(f"{annotations}: the {len(judges)} images that are to judge hold no object; raise --held-out")
        return scheme, list(Loader(Subset(dataset, calibration), batch_size=8)), judges

    def quantized(self, choices: Choices) -> Detector:
        """The detector with each searched layer as chosen."""
        if set(choices.values()) == {FLOAT} and not self.scheme.overrides:
            return self.plain
        own = {INTEGERS: replace(self.scheme, overrides={}), FLOAT: FLOAT, **STORED}
        overrides = {**self.scheme.overrides, **{layer: own[choice] for layer, choice in choices.items()}}
        return quantize(self.detector, replace(self.scheme, overrides=overrides), self.batches)

    def ap(self, choices: Choices) -> float:
        key = tuple(choices[layer] for layer in sorted(choices))
        if key not in self.known:
            self.known[key] = self._measured_ap(self.quantized(choices))
        return self.known[key]

    def _measured_ap(self, detector: Detector) -> float:
        return ap_on(PyTorchRuntime(detector), self.dataset, self.judges)

    def arithmetic(self) -> Found:
        """The first pass."""
        target = self.budget.target_latency_ms
        if target is not None:  # what the float model spends outside of the searched layers is spent anyway
            whole = whole_latencies({FLOAT: self.detector}, self.split, self.budget.engine)[FLOAT]
            target -= max(0.0, whole["latency_ms"] - sum(found[FLOAT] for found in self.costs.values()))
        return search(self.costs, self.errors, self.ap, self.left, target, evaluations=self.budget.evaluations)

    def storage(self, found: Found) -> Choices:
        """The second pass: how the layers that the first left float hold their weights, for what it left of the budget."""
        fixed = {layer: choice for layer, choice in found.choices.items() if choice != FLOAT}
        model = self.quantized(found.choices).model
        costs = {
            layer: {FLOAT: bytes_of(model.get_submodule(layer))}
            | {name: size for name, size in self.sizes[layer].items() if name in STORED}
            for layer in found.choices
            if layer not in fixed
        }
        if not costs:
            return found.choices
        left = self.left - found.drop
        stored = search(costs, self.errors, lambda choices: self.ap(fixed | choices), left, evaluations=self.budget.evaluations)
        return {layer: (fixed | stored.choices)[layer] for layer in found.choices}

    def all_in_integers(self) -> dict[str, Choices]:
        """Every layer in integers, where that keeps to the budget."""
        everything = dict.fromkeys(self.costs, INTEGERS)
        return {"all": everything} if self.float_ap - self.ap(everything) <= self.budget.max_ap_drop else {}

    def fastest(self, finals: Mapping[str, Choices]) -> tuple[Detector, dict[str, Any]]:
        """Of the finals the fastest as a whole, and what `quantize_within` returns of it."""
        detectors = {name: self.quantized(choices) for name, choices in finals.items()}
        whole = whole_latencies({FLOAT: self.detector} | detectors, self.split, self.budget.engine)
        best = min(detectors, key=lambda name: whole[name]["latency_ms"])
        ap = self.ap(finals[best])
        return detectors[best], {
            "engine": self.budget.engine,
            "max_ap_drop": self.budget.max_ap_drop,
            "images": len(self.judges),
            "float_ap": self.float_ap,
            "ap": ap,
            "drop": self.float_ap - ap,
            **{key: whole[best][key] for key in ("latency_ms", "speedup", "speedup_low", "speedup_high")},
            "float_latency_ms": whole[FLOAT]["latency_ms"],
            "evaluations": len(self.known),
            "layers": [
                {"name": layer, "choice": choice, "errors": self.errors[layer], "milliseconds": self.costs[layer]}
                for layer, choice in finals[best].items()
            ],
        }


def spread(choices: Sequence[int], count: int) -> list[int]:
    """`count` of the choices, evenly spread."""
    return [choices[index] for index in torch.linspace(0, len(choices) - 1, count).round().long().tolist()]


def ap_on(runtime: Runtime, dataset: CocoDataset, images: Subset) -> float:
    """AP on some of a data set's images."""
    results = []
    for batch in Loader(images, batch_size=8):
        for found, target in zip(runtime(batch), batch["labels"], strict=True):
            results += coco.to_results(found, int(target["image_id"]), dataset.class_map)
    return coco.evaluate_results(truth_of(dataset, images), results).ap


def truth_of(dataset: CocoDataset, images: Subset) -> dict[str, Any]:
    """The ground truth of some of a data set's images."""
    truth, ids = dataset.ground_truth(), {int(dataset.image_ids[index]) for index in images.indices}
    return truth | {
        "images": [image for image in truth["images"] if image["id"] in ids],
        "annotations": [annotation for annotation in truth["annotations"] if annotation["image_id"] in ids],
    }
