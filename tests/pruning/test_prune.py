"""What is pruned matters least and reaches the goal; what comes of it is a detector like any other."""

import json

import pytest
import torch

from leandetr.data.coco import class_map_of, find_split
from leandetr.data.shapes import write_shapes
from leandetr.detectors.checkpoints.load import load
from leandetr.detectors.create import create
from leandetr.detectors.prunable import prunable_units
from leandetr.detectors.reconfigure import reconfigure
from leandetr.detectors.trim import trim
from leandetr.errors import UserError
from leandetr.pruning import Pruning
from leandetr.pruning.importance import magnitude, taylor
from leandetr.pruning.order import order_of
from leandetr.pruning.prune import keep_units


@torch.no_grad()
def answer(detector):
    return detector(torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0)))


def test_taylor_is_what_the_loss_would_change_to_first_order(tiny_detector, labels):
    detector = tiny_detector("conditional_detr", "test_resnet")
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in detector.model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    detector = detector.double().requires_grad_(False)
    pixels = torch.randn(2, 3, 128, 128, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    images = [
        {"pixel_values": pixels[i : i + 1], "pixel_mask": torch.ones(1, 128, 128), "labels": [target]}
        for i, target in enumerate(labels(3, 1))
    ]
    for image in images:
        image["labels"][0]["boxes"] = image["labels"][0]["boxes"].double()
    units = prunable_units(detector.model)
    found = taylor(detector, units, images, lambda: None)
    assert list(found) == list(units)
    for key in {each.structure: key for key, each in units.items()}.values():
        unit = int(found[key].argmax())  # many units of ReLU do nothing
        reading = units[key].parts[-1]
        columns = reading.layer.weight[:, unit * reading.size : (unit + 1) * reading.size]
        own, expected = columns.clone(), 0.0
        for image in images:
            losses = []
            for factor in (1 + 1e-5, 1 - 1e-5):
                columns.copy_(own * factor)
                losses.append(detector(image["pixel_values"], image["pixel_mask"], image["labels"]).loss)
            expected += abs(float(losses[0] - losses[1])) / 2e-5
        columns.copy_(own)
        assert expected > 1e-6
        assert float(found[key][unit]) == pytest.approx(expected, rel=1e-3, abs=1e-7)


def test_magnitude_is_of_all_weights_of_a_unit(tiny_detector):
    units = prunable_units(tiny_detector("detr", "test_resnet").model)
    for each in units.values():
        for part in each.parts:
            if part.layer.weight.dim() > 1:
                with torch.no_grad():
                    weight = part.layer.weight.transpose(0, part.axis)
                    weight[1 * part.size : 2 * part.size] = 0
                    weight[3 * part.size : 4 * part.size] *= 9
    for values in magnitude(units).values():
        assert int(values.argmin()) == 1
        assert float(values[1]) == 0
        assert int(values.argmax()) == 3


def test_the_least_important_for_their_cost_leave_first():
    generator = torch.Generator().manual_seed(0)
    importance = {"a": torch.rand(64, generator=generator) + 1, "b": torch.rand(43, generator=generator) + 10}
    importance["h"] = torch.tensor([5.0, 500.0, 45.0])
    costs, together = {"a": 1.0, "b": 9.0, "h": 100.0}, {"a": 8, "b": 8, "h": 1}
    order = order_of(importance, costs, together)
    assert [group.name for group in order] == ["h", *"a" * 7, *"b" * 5, "h"]
    assert [group.units.tolist() for group in order if group.name == "h"] == [[0], [2]]
    sizes = {key: [len(group.units) for group in order if group.name == key] for key in costs}
    assert sizes == {"a": [8] * 7, "b": [3] + [8] * 4, "h": [1, 1]}
    for key, values in importance.items():
        gone = torch.cat([group.units for group in order if group.name == key])
        stay = torch.ones(len(values), dtype=torch.bool).scatter(0, gone, False)
        assert values[stay].min() >= values[gone].max()
        assert stay.any()


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"ratio": 0}, "Pruning: ratio: input should be"),
        ({"ratio": 1}, "Pruning: ratio: input should be"),
        ({}, "give one goal: ratio, target_macs or target_latency_ms"),
        ({"ratio": 0.3, "target_macs": 1e9}, "give one goal"),
        ({"ratio": 0.3, "structures": []}, "structures"),
        ({"ratio": 0.3, "structures": ["layers"]}, "structures"),
        ({"target_latency_ms": 3, "engine": "tensorflow"}, "'tensorflow' is none of"),
    ],
)
def test_goals_that_are_none(values, sentence):
    with pytest.raises(UserError, match=sentence):
        Pruning(**values)


def test_a_pruned_detector_can_be_cut_and_pruned_again(tiny_detector):
    detector = tiny_detector("detr", "test_resnet")
    kept = {key: torch.arange(units.count - 1) for key, units in prunable_units(detector.model).items()}
    pruned = keep_units(detector, kept)
    shorter = trim(pruned, layers=2)
    assert sorted(shorter.config.pruned_units) == [name for name in sorted(kept) if "decoder.layers.2" not in name]
    torch.testing.assert_close(answer(shorter).logits[-1], answer(pruned).logits[1], rtol=0, atol=1e-5)
    again = keep_units(pruned, {key: units[:1] for key, units in kept.items()})
    assert set(again.config.pruned_units.values()) == {1}
    for key in ("decoder_ffn_dim", "encoder_attention_heads"):
        with pytest.raises(UserError, match=f"{key}: layers that were pruned have widths and heads of their own"):
            reconfigure(pruned, {key: 4})


@pytest.fixture
def whole(tmp_path):
    """The folder of shapes and a saved tiny detector for them."""
    data = write_shapes(tmp_path / "data", 8, 2, (64, 64))
    small = {"decoder_layers": 2, "num_queries": 12, "decoder_ffn_dim": 64, "encoder_ffn_dim": 64, "d_model": 64}
    torch.manual_seed(0)
    detector = create("rt_detr_v2", class_map_of(find_split(data, "train")), (64, 64), "test_resnet", overrides=small)
    detector.save(tmp_path / "whole")
    return data


@pytest.mark.parametrize(
    ("importance", "structures"), [("taylor", "ffn,heads,channels"), ("magnitude", "ffn,heads"), ("magnitude", "channels")]
)
def test_what_comes_of_it_is_a_detector_like_any_other(whole, run, tmp_path, importance, structures):
    out, ratio = tmp_path / "out", 0.04
    order = ("prune", tmp_path / "whole", "--data", whole, "--out", out, "--ratio", ratio)
    status, text, errors = run(*order, "--importance", importance, "--structures", structures)
    assert status == 0, errors
    found = json.loads((out / "pruning.json").read_text())
    before, after = found["multiply_adds"]["before"], found["multiply_adds"]["after"]
    assert ratio <= 1 - after / before < ratio + 0.05  # eight channels of so small a detector
    assert {row["structure"] for row in found["layers"]} == set(structures.split(","))
    detector = load(out)
    assert sum(parameter.numel() for parameter in detector.parameters()) == found["parameters"]["after"]
    assert f"{found['parameters']['after'] / 1e6:.2f} M" in text
    assert detector.config.pruned_units == {row["name"]: row["kept"] for row in found["layers"] if row["kept"] < row["width"]}


def test_targets_in_multiply_adds_and_milliseconds(whole, run, tmp_path, monkeypatch):
    order = ("prune", tmp_path / "whole", "--data", whole, "--importance", "magnitude")
    status, _, errors = run(*order, "--out", tmp_path / "fewer", "--target-macs", 3e7)
    assert status == 0, errors
    found = json.loads((tmp_path / "fewer/pruning.json").read_text())["multiply_adds"]
    assert 2.8e7 < found["after"] <= 3e7 < found["before"]

    def rule(detectors, *_):
        """A millisecond for every hundred thousand parameters."""
        times = {name: sum(p.numel() for p in each.parameters()) / 1e5 for name, each in detectors.items()}
        first = next(iter(times.values()))
        ratios = ("speedup", "speedup_low", "speedup_high")
        return {name: {"latency_ms": time} | dict.fromkeys(ratios, first / time) for name, time in times.items()}

    monkeypatch.setattr("leandetr.pruning.goal.measured", rule)
    parameters = sum(parameter.numel() for parameter in load(tmp_path / "whole").parameters())
    target = 0.97 * parameters / 1e5
    status, text, errors = run(*order, "--out", tmp_path / "faster", "--target-latency-ms", target)
    assert status == 0, errors
    found = json.loads((tmp_path / "faster/pruning.json").read_text())
    assert 0.94 * parameters < found["parameters"]["after"] <= 0.97 * parameters
    assert found["latency_ms"]["after"] == pytest.approx(found["parameters"]["after"] / 1e5)
    assert "onnxruntime: " in text
    for what, value, sentence in (
        (
            "--target-latency-ms",
            0.001,
            "the target of 0.001 ms cannot be met by pruning ffn, heads, channels: without all that",
        ),
        ("--target-latency-ms", 1e6, "the detector takes no more than 1e+06 ms already"),
        ("--target-macs", 1e3, "a target of 1000 multiply-adds cannot be met: at most"),
        ("--target-macs", 1e12, "multiply-adds already; ask for fewer"),
    ):
        status, _, said = run(*order, "--out", tmp_path / "none", what, value)
        assert status == 2
        assert sentence in " ".join(said.split())


@pytest.mark.slow
def test_recovery_quantization_and_export_keep_the_shapes(whole, run, tmp_path):
    pruned, better, small = tmp_path / "pruned", tmp_path / "better", tmp_path / "small"
    base = ("--data", whole, "--out")
    assert run("prune", tmp_path / "whole", *base, pruned, "--ratio", 0.05, "--importance", "magnitude")[0] == 0
    teaching = ("--student", pruned, "--teacher", tmp_path / "whole", "--method", "logits", "--max-steps", 1)
    status, _, errors = run("distill", *teaching, *base, better)
    assert status == 0, errors
    counts = load(pruned).config.pruned_units
    assert load(better).config.pruned_units == counts
    assert run("quantize", better, "--scheme", "static", *base, small)[0] == 0
    assert load(small).config.pruned_units == counts
    assert run("export", small, "--out", tmp_path / "small.onnx")[0] == 0
    assert run("predict", tmp_path / "small.onnx", whole / "val", "--out", tmp_path / "seen")[0] == 0

    status, _, said = run("prune", small, *base, tmp_path / "none", "--ratio", 0.05)
    assert status == 2
    assert "is quantized already; prune the float detector" in said
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("ratio", "sentence"),
    [
        (0.99, "before a layer would be empty"),
        (1.5, "ratio: input should be less than 1"),
        (0, "greater than 0"),
    ],
)
def test_what_cannot_be_is_said(whole, run, tmp_path, ratio, sentence):
    order = ("prune", tmp_path / "whole", "--data", whole, "--out", tmp_path / "none", "--importance", "magnitude")
    status, _, said = run(*order, "--ratio", ratio)
    assert status == 2
    assert sentence in " ".join(said.split())
    assert said.count("\n") < 3
    assert not (tmp_path / "none").exists()


def test_an_impossible_number_in_a_configuration(whole, tmp_path):
    file = tmp_path / "whole/config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"pruned_units": {"model.decoder.layers.0.mlp": 65}}))
    with pytest.raises(UserError, match=r"65 units in model\.decoder\.layers\.0\.mlp, which has 1 to 64"):
        load(tmp_path / "whole")
