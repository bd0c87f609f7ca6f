"""A student that is pruned before its training, once for all variants and seeds."""

import pytest
import torch

from leandetr.data.coco import class_map_of, find_split
from leandetr.data.shapes import write_shapes
from leandetr.detectors.checkpoints.load import load
from leandetr.detectors.create import create
from leandetr.errors import UserError
from leandetr.recipe import parse_recipe
from leandetr.runs import compress


def test_a_student_is_pruned_before_its_training(tmp_path):
    data = write_shapes(tmp_path / "data", 4, 2, (64, 64))
    torch.manual_seed(0)
    overrides = {"d_model": 32, "decoder_layers": 2, "encoder_layers": 1, "decoder_ffn_dim": 32, "num_queries": 8}
    classes = class_map_of(find_split(data, "train"))
    create("detr", classes, (64, 64), "test_resnet", overrides=overrides).save(tmp_path / "whole")
    student = {
        "checkpoint": str(tmp_path / "whole"),
        "set": {"decoder_layers": 1},
        "prune": {"ratio": 0.1, "importance": "magnitude"},
        "training": {"epochs": 1, "batch_size": 4},
    }
    values = {
        "data": {"folder": str(data)},
        "student": student,
        "seeds": [0, 1],
        "variants": [{"name": "narrow"}],
        "gallery": 0,
    }
    results = compress(parse_recipe(values, "recipe.yaml"), tmp_path / "run")
    assert not results["left"]
    (pruned,) = (tmp_path / "run").glob("pruned-*")
    counts = load(pruned).config.pruned_units
    assert counts
    assert not any("decoder.layers.1" in name for name in counts)
    for seed in (0, 1):
        found = load(tmp_path / "run" / f"narrow-seed-{seed}")
        assert found.config.pruned_units == counts
        assert found.config.decoder_layers == 1
    step = next(step for step in results["steps"] if step["kind"] == "pruning")
    assert "of multiply-adds and" in step["summary"]


@pytest.mark.parametrize(
    "student", [{"model": "detr", "prune": {"ratio": 0.3}}, {"checkpoint": "runs/student", "prune": {"ratio": 0.3}}]
)
def test_nothing_is_pruned_that_is_not_trained_further(student):
    values = {"data": {"shapes": {}}, "image_size": [64, 64], "student": student, "variants": [{"name": "narrow"}]}
    with pytest.raises(UserError, match="prune is of a trained detector that is trained further: give checkpoint and training"):
        parse_recipe(values, "recipe.yaml")
