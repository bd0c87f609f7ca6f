"""A student that is pruned before its training, once for all variants and seeds."""

import pytest
import torch

from leandetr.data.coco import class_map_of, find_split
from leandetr.data.shapes import write_shapes
from leandetr.detectors.checkpoints.load import load
from leandetr.detectors.create import create
from leandetr.detectors.multiply_adds import multiply_adds
from leandetr.errors import UserError
from leandetr.recipe import parse_recipe
from leandetr.runs import compress


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A detector, and beside it the data of its classes."""
    folder = tmp_path_factory.mktemp("pruned")
    data = write_shapes(folder / "data", 4, 2, (64, 64))
    torch.manual_seed(0)
    overrides = {"d_model": 32, "decoder_layers": 2, "encoder_layers": 1, "decoder_ffn_dim": 32, "num_queries": 8}
    classes = class_map_of(find_split(data, "train"))
    create("detr", classes, (64, 64), "test_resnet", overrides=overrides).save(folder / "whole")
    return folder / "whole"


def test_a_student_is_pruned_before_its_training(tmp_path, whole):
    student = {
        "checkpoint": str(whole),
        "set": {"decoder_layers": 1},
        "prune": {"ratio": 0.1, "importance": "magnitude"},
        "training": {"epochs": 1, "batch_size": 4},
    }
    values = {
        "data": {"folder": str(whole.parent / "data")},
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


def test_a_student_is_pruned_in_rounds_between_which_it_learns(tmp_path, whole):
    student = {
        "checkpoint": str(whole),
        "prune": {"ratio": 0.2, "importance": "magnitude", "rounds": 2},
        "training": {"epochs": 3, "batch_size": 4},
    }
    values = {
        "data": {"folder": str(whole.parent / "data")},
        "student": student,
        "teacher": {"checkpoint": str(whole)},
        "variants": [{"name": "narrow", "distillation": {"method": "logits"}}],
        "gallery": 0,
    }
    recipe = parse_recipe(values, "recipe.yaml")
    results = compress(recipe, tmp_path / "run")
    macs = [multiply_adds(load(tmp_path / "run" / name).model, (64, 64)) for name in ("narrow-seed-0-round-1", "narrow-seed-0")]
    first, second = (count / multiply_adds(load(whole).model, (64, 64)) for count in macs)
    assert 0.85 < first <= 0.9
    assert 0.75 < second <= 0.8
    summaries = {step["name"]: step["summary"] for step in results["steps"]}
    assert summaries["narrow-seed-0-round-1"].startswith("1 epochs from")
    assert summaries["narrow-seed-0"].startswith("2 epochs from")
    begun = (tmp_path / "run/narrow-seed-0-round-1/model.safetensors").read_bytes()
    assert compress(recipe, tmp_path / "run")["rows"] == results["rows"]
    assert (tmp_path / "run/narrow-seed-0-round-1/model.safetensors").read_bytes() == begun


@pytest.mark.parametrize(
    ("prune", "training", "sentence"),
    [
        ({"target_macs": 1e6, "rounds": 2}, {"epochs": 4}, "rounds are steps towards a ratio"),
        ({"ratio": 0.3, "rounds": 5}, {"epochs": 4}, "prune.rounds: 5 trainings cannot share 4 epochs"),
        ({"ratio": 0.3, "rounds": 2}, {"epochs": 4, "keep_epochs": [2]}, "training.keep_epochs: every round"),
    ],
)
def test_rounds_that_cannot_be_are_refused(whole, prune, training, sentence):
    student = {"checkpoint": str(whole), "prune": prune, "training": training}
    values = {"data": {"shapes": {}}, "image_size": [64, 64], "student": student, "variants": [{"name": "narrow"}]}
    with pytest.raises(UserError, match=sentence):
        parse_recipe(values, "recipe.yaml")


def test_a_teacher_is_not_pruned_in_rounds(whole):
    teacher = {"checkpoint": str(whole), "prune": {"ratio": 0.3, "rounds": 2}, "training": {"epochs": 4}}
    values = {"data": {"shapes": {}}, "image_size": [64, 64], "teacher": teacher, "student": {"model": "detr"}}
    with pytest.raises(UserError, match=r"teacher.prune.rounds: students alone"):
        parse_recipe(values | {"variants": [{"name": "narrow"}]}, "recipe.yaml")


@pytest.mark.parametrize(
    "student", [{"model": "detr", "prune": {"ratio": 0.3}}, {"checkpoint": "runs/student", "prune": {"ratio": 0.3}}]
)
def test_nothing_is_pruned_that_is_not_trained_further(student):
    values = {"data": {"shapes": {}}, "image_size": [64, 64], "student": student, "variants": [{"name": "narrow"}]}
    with pytest.raises(UserError, match="prune is of a trained detector that is trained further: give checkpoint and training"):
        parse_recipe(values, "recipe.yaml")
