"""A variant that is trimmed has a row more, and what is quantized is the trimmed one."""

import json

import pytest
import torch

from leandetr.data.coco import class_map_of, find_split
from leandetr.data.shapes import write_shapes
from leandetr.detectors.checkpoints.load import load
from leandetr.detectors.create import create
from leandetr.errors import UserError
from leandetr.recipe import parse_recipe
from leandetr.recipe.rows import planned_rows
from leandetr.runs import compress
from leandetr.trimming import trim as module


def test_a_trimmed_variant_is_quantized_trimmed(tmp_path, monkeypatch):
    data = write_shapes(tmp_path / "data", 4, 2, (64, 64))
    torch.manual_seed(0)
    overrides = {"d_model": 32, "decoder_layers": 2, "encoder_layers": 1, "decoder_ffn_dim": 32, "num_queries": 8}
    classes = class_map_of(find_split(data, "train"))
    create("detr", classes, (64, 64), "test_resnet", overrides=overrides).save(tmp_path / "whole")

    def rule(detectors, *_):
        times = {name: each.config.decoder_layers + each.config.num_queries / 8 for name, each in detectors.items()}
        first = next(iter(times.values()))
        ratios = ("speedup", "speedup_low", "speedup_high")
        return {name: {"latency_ms": time} | dict.fromkeys(ratios, first / time) for name, time in times.items()}

    monkeypatch.setattr(module, "measured", rule)
    monkeypatch.setattr("leandetr.trimming.latency.measured", rule)
    variant = {
        "name": "small",
        "against": "small",
        "trim": {"target_latency_ms": 2.2},
        "quantization": [{"scheme": "weight-only"}],
    }
    values = {
        "data": {"folder": str(data)},
        "student": {"checkpoint": str(tmp_path / "whole")},
        "variants": [variant],
        "gallery": 0,
    }
    recipe = parse_recipe(values, "recipe.yaml")
    assert {row: plan.against for row, plan in planned_rows(recipe).items()} == {
        "small": None,
        "small-trimmed": "small",
        "small-weight-only": "small",
    }
    results = compress(recipe, tmp_path / "run")
    assert [row["name"] for row in results["rows"]] == ["small", "small-trimmed", "small-weight-only"]
    assert not results["left"]
    for row in ("small-trimmed", "small-weight-only"):
        found = load(tmp_path / "run" / f"{row}-seed-0")
        assert found.config.decoder_layers == 1
    step = next(step for step in results["steps"] if step["name"] == "small-trimmed-seed-0")
    assert "1 of 2 layers" in step["summary"]
    assert json.loads((tmp_path / "run/small-trimmed-seed-0/frontier.json").read_text())["goal"] == {"target_latency_ms": 2.2}


def test_a_goal_that_is_none_is_named_with_its_place():
    values = {
        "data": {"shapes": {}},
        "student": {"model": "detr", "image_size": [64, 64]},
        "variants": [{"name": "small", "trim": {"max_drop": 0.1}}],
    }
    with pytest.raises(UserError, match=r"recipe.yaml: unknown key 'variants.*max_drop'"):
        parse_recipe(values, "recipe.yaml")
