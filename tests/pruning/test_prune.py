"""A pruned detector is the whole one with units masked; what is pruned matters least; what comes of it is a detector like any
other."""

import json

import pytest
import torch

from leandetr.data.coco import class_map_of, find_split
from leandetr.data.shapes import write_shapes
from leandetr.detectors.checkpoints.load import load
from leandetr.detectors.create import create
from leandetr.detectors.feed_forward import feed_forward_layers
from leandetr.detectors.multiply_adds import multiply_adds
from leandetr.detectors.names import MODELS, missing
from leandetr.detectors.reconfigure import reconfigure
from leandetr.detectors.trim import trim
from leandetr.errors import UserError
from leandetr.pruning import Pruning
from leandetr.pruning.importance import magnitude, taylor, tokens
from leandetr.pruning.prune import choose, keep_units

#: built of the parts of another
ALIKE = ("rt_detr", "deformable_detr_refine", "deformable_detr_two_stage", "lw_detr")
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name in ALIKE else name for name in MODELS if not missing(name)]


@pytest.fixture
def lively(tiny_detector):
    """lively(name): whose feed-forward layers do something."""

    def build(name):
        detector = tiny_detector(name)
        torch.manual_seed(1)
        with torch.no_grad():
            for layer in feed_forward_layers(detector.model).values():
                for linear in (*layer.into, layer.out):
                    linear.weight.add_(torch.randn_like(linear.weight) * 0.1)
                    linear.bias.add_(torch.randn_like(linear.bias) * 0.1)
        return detector

    return build


@torch.no_grad()
def answer(detector):
    return detector(torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("name", NAMES)
def test_pruned_is_masked_and_saves_and_loads(lively, name, tmp_path):
    detector = lively(name)
    layers = feed_forward_layers(detector.model)
    sides = {"encoder", "decoder"} if hasattr(detector.config, "encoder_layers") else {"decoder"}
    assert {layer.split(".")[1] for layer in layers} == sides
    assert sum("decoder" in layer for layer in layers) == 3
    kept = {key: torch.randperm(layer.width)[: layer.width // 2 - index] for index, (key, layer) in enumerate(layers.items())}
    pruned = keep_units(detector, kept)
    pruned.save(tmp_path / "pruned")
    whole = answer(detector)
    masks = []
    for key, layer in layers.items():
        mask = torch.zeros(layer.width)
        mask[kept[key]] = 1.0
        masks.append(layer.out.register_forward_pre_hook(lambda _, args, mask=mask: (args[0] * mask,)))
    expected = answer(detector)
    assert not torch.allclose(expected.logits[-1], whole.logits[-1], atol=1e-3)
    for found in (pruned, load(tmp_path / "pruned")):
        widths = {key: layer.width for key, layer in feed_forward_layers(found.model).items()}
        assert widths == found.config.pruned_ffn == {key: len(units) for key, units in kept.items()}
        output = answer(found)
        torch.testing.assert_close(output.logits, expected.logits, rtol=0, atol=1e-5)
        torch.testing.assert_close(output.boxes, expected.boxes, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["detr", "deimv2"])
def test_multiply_adds_are_those_that_leave(tiny_detector, name):
    detector = tiny_detector(name).requires_grad_(False)
    layers = feed_forward_layers(detector.model)
    kept = {key: torch.arange(layer.width - 8) for key, layer in layers.items()}
    counted = tokens(detector, (96, 128))
    gone = sum(8 * 64 * (len(layer.into) + 1) * counted[key] for key, layer in layers.items())
    before = multiply_adds(detector.model, (96, 128))
    assert before - multiply_adds(keep_units(detector, kept).model, (96, 128)) == gone


def test_taylor_is_what_the_loss_would_change_to_first_order(lively, labels):
    detector = lively("conditional_detr").double().requires_grad_(False)
    pixels = torch.randn(2, 3, 128, 128, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    images = [
        {"pixel_values": pixels[i : i + 1], "pixel_mask": torch.ones(1, 128, 128), "labels": [target]}
        for i, target in enumerate(labels(3, 1))
    ]
    for image in images:
        image["labels"][0]["boxes"] = image["labels"][0]["boxes"].double()
    found = taylor(detector, images, lambda: None)
    layers = feed_forward_layers(detector.model)
    assert list(found) == list(layers)
    for key, unit in zip(layers, (300, 3, 17, 40), strict=True):
        column, expected = layers[key].out.weight[:, unit], 0.0
        own = column.clone()
        for image in images:
            losses = []
            for factor in (1 + 1e-5, 1 - 1e-5):
                column.copy_(own * factor)
                losses.append(detector(image["pixel_values"], image["pixel_mask"], image["labels"]).loss)
            expected += abs(float(losses[0] - losses[1])) / 2e-5
        column.copy_(own)
        assert float(found[key][unit]) == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_units_without_weights_have_no_magnitude(tiny_detector):
    detector = tiny_detector("deimv2")
    for layer in feed_forward_layers(detector.model).values():
        with torch.no_grad():
            for linear in layer.into:
                linear.weight[5] = 0
            layer.out.weight[:, 5] = 0
            layer.out.weight[:, 7] = 9
    for values in magnitude(detector).values():
        assert int(values.argmin()) == 5
        assert float(values[5]) == 0
        assert int(values.argmax()) == 7


def test_the_least_important_leave_until_the_ratio_is_reached():
    generator = torch.Generator().manual_seed(0)
    importance = {"a": torch.rand(64, generator=generator) * 100, "b": torch.rand(43, generator=generator)}
    costs = {"a": 3, "b": 10}
    kept = choose(importance, costs, 0.3)
    gone = sum((len(values) - len(kept[key])) * costs[key] for key, values in importance.items())
    total = 64 * 3 + 43 * 10
    assert 0.3 * total <= gone < 0.3 * total + 8 * 10
    for key, values in importance.items():
        assert len(kept[key]) % 8 == 0
        stays = torch.zeros(len(values), dtype=torch.bool).scatter(0, kept[key], True)
        assert values[stays].min() >= values[~stays].max()
    same = choose({"a": importance["a"] / 100, "b": importance["b"] * 7}, costs, 0.3)
    assert all(torch.equal(kept[key], same[key]) for key in kept)


@pytest.mark.parametrize("ratio", [0, 1, -0.3, 30])
def test_ratios_that_are_none(ratio):
    with pytest.raises(UserError, match="Pruning: ratio: input should be"):
        Pruning(ratio=ratio)


def test_a_pruned_detector_can_be_cut_and_pruned_again(lively):
    detector = lively("detr")
    kept = {key: torch.arange(layer.width - 8) for key, layer in feed_forward_layers(detector.model).items()}
    pruned = keep_units(detector, kept)
    shorter = trim(pruned, layers=2)
    assert sorted(shorter.config.pruned_ffn) == [name for name in sorted(kept) if "decoder.layers.2" not in name]
    torch.testing.assert_close(answer(shorter).logits[-1], answer(pruned).logits[1], rtol=0, atol=1e-5)
    again = keep_units(pruned, {key: units[:8] for key, units in kept.items()})
    assert set(again.config.pruned_ffn.values()) == {8}
    with pytest.raises(UserError, match="decoder_ffn_dim: feed-forward layers that were pruned have widths of their own"):
        reconfigure(pruned, {"decoder_ffn_dim": 128})


@pytest.fixture
def whole(tmp_path):
    """The folder of shapes and a saved tiny detector for them."""
    data = write_shapes(tmp_path / "data", 8, 2, (64, 64))
    small = {"decoder_layers": 2, "num_queries": 12, "decoder_ffn_dim": 64, "encoder_ffn_dim": 64, "d_model": 64}
    torch.manual_seed(0)
    detector = create("rt_detr_v2", class_map_of(find_split(data, "train")), (64, 64), "test_resnet", overrides=small)
    detector.save(tmp_path / "whole")
    return data


@pytest.mark.parametrize("importance", ["taylor", "magnitude"])
def test_what_comes_of_it_is_a_detector_like_any_other(whole, run, tmp_path, importance):
    out = tmp_path / "out"
    order = ("prune", tmp_path / "whole", "--data", whole, "--out", out, "--ratio", 0.3, "--importance", importance)
    status, text, errors = run(*order)
    assert status == 0, errors
    assert "attention heads and the backbone's channels are not pruned yet" in errors
    found = json.loads((out / "pruning.json").read_text())
    assert 0.7 - 0.1 < found["feed_forward"]["after"] / found["feed_forward"]["before"] <= 0.7
    detector = load(out)
    assert sum(parameter.numel() for parameter in detector.parameters()) == found["parameters"]["after"]
    assert f"{found['parameters']['after'] / 1e6:.2f} M" in text
    gone = found["multiply_adds"]["before"] - found["multiply_adds"]["after"]
    assert gone == found["feed_forward"]["before"] - found["feed_forward"]["after"] > 0
    assert detector.config.pruned_ffn == {row["name"]: row["kept"] for row in found["layers"] if row["kept"] < row["width"]}


def test_recovery_quantization_and_export_keep_the_widths(whole, run, tmp_path):
    pruned, better, small = tmp_path / "pruned", tmp_path / "better", tmp_path / "small"
    base = ("--data", whole, "--out")
    assert run("prune", tmp_path / "whole", *base, pruned, "--ratio", 0.3, "--importance", "magnitude")[0] == 0
    teaching = ("--student", pruned, "--teacher", tmp_path / "whole", "--method", "logits", "--max-steps", 1)
    status, _, errors = run("distill", *teaching, *base, better)
    assert status == 0, errors
    assert load(better).config.pruned_ffn == load(pruned).config.pruned_ffn
    assert run("quantize", better, "--scheme", "static", *base, small)[0] == 0
    assert load(small).config.pruned_ffn == load(pruned).config.pruned_ffn
    assert run("export", small, "--out", tmp_path / "small.onnx")[0] == 0
    assert run("predict", tmp_path / "small.onnx", whole / "val", "--out", tmp_path / "seen")[0] == 0

    status, _, said = run("prune", small, *base, tmp_path / "none", "--ratio", 0.3)
    assert status == 2
    assert "is quantized already; prune the float detector" in said
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("ratio", "sentence"),
    [(0.999, "no hidden unit would be left in model."), (1.5, "ratio: input should be less than 1"), (0, "greater than 0")],
)
def test_what_cannot_be_is_said(whole, run, tmp_path, ratio, sentence):
    status, _, said = run("prune", tmp_path / "whole", "--data", whole, "--out", tmp_path / "none", "--ratio", ratio)
    assert status == 2
    assert sentence in " ".join(said.split())
    assert said.count("\n") < 3
    assert not (tmp_path / "none").exists()


def test_an_impossible_width_in_a_configuration(whole, tmp_path):
    file = tmp_path / "whole/config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"pruned_ffn": {"model.decoder.layers.0.mlp": 65}}))
    with pytest.raises(UserError, match=r"65 hidden units in model\.decoder\.layers\.0\.mlp, which has 1 to 64"):
        load(tmp_path / "whole")
