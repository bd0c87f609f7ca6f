"""The search over real measures: what judges is not what calibrates, and what is saved is what was chosen."""

from dataclasses import replace

import pytest

from leandetr.data.coco import class_map_of, find_split
from leandetr.data.shapes import write_shapes
from leandetr.deployment import budget as module
from leandetr.deployment.budget import Budget, quantize_within
from leandetr.errors import UserError
from leandetr.files import read_json, write_json
from leandetr.quantization import Static


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    return find_split(write_shapes(tmp_path_factory.mktemp("shapes") / "data", 12, 1, (64, 64)), "train")


@pytest.fixture
def judged(monkeypatch):
    """AP and times by rule: integers halve a layer's time except for fc1's; every other layer in integers costs 0.01 AP."""
    calls = []

    def ap(runtime, _dataset, images):
        layers = runtime.detector.config.quantization_config.layers
        calls.append(set(images.indices))
        return 0.5 - 0.01 * sum(plan["input"] in ("grid", "given") and "fc2" in name for name, plan in layers.items())

    def costs(candidates, *_):
        layers = candidates["static"].config.quantization_config.as_asked
        return {name: {"float": 1.0, "static": 1.5 if "fc1" in name else 0.5} for name in layers}

    def whole(detectors, *_):
        times = {"float": 3.0, "mixed": 2.0, "all": 1.0}
        kinds = ("latency_ms", "speedup", "speedup_low", "speedup_high")
        return {name: dict.fromkeys(kinds, 3 / times[name]) | {"latency_ms": times[name]} for name in detectors}

    monkeypatch.setattr(module, "whole_latencies", whole)
    monkeypatch.setattr(module, "ap_on", ap)
    monkeypatch.setattr(module, "layer_costs", costs)
    return calls


def test_layers_that_cost_accuracy_or_gain_no_time_do_not_compute_in_integers(build, split, judged):
    detector = build("detr", noise=0.12)
    detector.class_map = class_map_of(split)
    quantized, found = quantize_within(detector, Static(calibration_images=4), split, Budget(0.005, evaluations=60))
    choices = {layer["name"]: layer["choice"] for layer in found["layers"]}
    assert {choice for name, choice in choices.items() if "fc1" in name or "fc2" in name} == {"int4 weights"}
    assert {choice for name, choice in choices.items() if "fc1" not in name and "fc2" not in name} == {"static"}
    assert found["drop"] == pytest.approx(0)
    assert (found["latency_ms"], found["float_latency_ms"]) == (2.0, 3.0)
    plans = quantized.config.quantization_config.layers
    assert all((plans[name]["weight_bits"] == 4) == (choice == "int4 weights") for name, choice in choices.items())
    assert len(judged[0]) == found["images"] == 8  # 12 images, 4 of which calibrate


def test_all_in_integers_is_the_answer_where_that_is_faster_and_keeps_to_the_budget(build, split, judged):
    detector = build("detr", noise=0.12)
    detector.class_map = class_map_of(split)
    _, found = quantize_within(detector, Static(calibration_images=4), split, Budget(0.5))
    assert {layer["choice"] for layer in found["layers"]} == {"static"}
    assert found["latency_ms"] == 1.0
    assert found["drop"] > 0


@pytest.mark.slow
def test_layers_of_the_overrides_are_as_these_say_and_take_from_the_budget(build, split, judged):
    detector = build("detr", noise=0.12)
    detector.class_map = class_map_of(split)
    scheme = Static(calibration_images=4, overrides={"*encoder*fc1": "weight-only", "*decoder.layers.0.mlp.fc2": "static"})
    quantized, found = quantize_within(detector, scheme, split, Budget(0.015, evaluations=60))
    plans = quantized.config.quantization_config.layers
    assert {plan["input"] for name, plan in plans.items() if "encoder" in name and name.endswith("fc1")} == {"float"}
    assert [name for name, plan in plans.items() if name.endswith("fc2") and plan["input"] != "float"] == [
        "model.decoder.layers.0.mlp.fc2"
    ]
    assert not any(scheme.overridden(layer["name"]) for layer in found["layers"])
    assert found["drop"] == pytest.approx(0.01)
    with pytest.raises(UserError, match="overrides alone lose"):
        quantize_within(detector, scheme, split, Budget(0.005))


def test_images_without_objects_judge_nothing(build, split, judged, tmp_path):
    detector = build("detr", noise=0.12)
    detector.class_map = class_map_of(split)
    coco = read_json(split.annotations)
    first = coco["images"][0]["id"]
    coco["annotations"] = [annotation for annotation in coco["annotations"] if annotation["image_id"] == first]
    write_json(tmp_path / "first.json", coco)
    with pytest.raises(UserError, match="hold no object"):
        quantize_within(detector, Static(calibration_images=4), replace(split, annotations=tmp_path / "first.json"), Budget())


@pytest.mark.parametrize("wrong", [{"max_ap_drop": -0.1}, {"max_ap_drop": 5}, {"target_latency_ms": 0}])
def test_budgets_out_of_range(wrong):
    with pytest.raises(UserError, match="give"):
        Budget(**wrong)
