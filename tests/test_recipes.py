"""The recipes that come along: each is understood, and what runs here fits together before any data is read."""

import copy
from pathlib import Path

import pytest
import torch

from leandetr.data.coco import class_map_of, find_split
from leandetr.data.shapes import write_shapes
from leandetr.deployment.runtimes import open_runtime
from leandetr.detectors.checkpoints.load import load
from leandetr.detectors.create import create
from leandetr.recipe import read_recipe
from leandetr.runs import compress
from leandetr.runs.run import Run
from leandetr.runs.steps import Steps
from leandetr.structures import ClassMap
from leandetr.verbs import export

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
PARTS = ("scales", "rows")  # what recipes extend, no recipes by themselves
ALL = sorted(path for path in RECIPES.rglob("*.yaml") if path.parent.name not in PARTS)


def name(path):
    return str(path.relative_to(RECIPES))


@pytest.fixture(scope="module")
def untrained():
    """As `Steps.untrained`, for three classes, without weights of a backbone, each model built once."""
    built = {}

    def build(steps, model):
        model = model if model.model is not None else steps.recipe.student  # for a checkpoint that others train
        size = model.image_size or steps.recipe.image_size
        key = repr((model.model, size, model.backbone, sorted(model.set.items())))
        if key not in built:
            built[key] = create(model.model, ClassMap(("a", "b", "c"), (1, 2, 3)), size, model.backbone, None, model.set)
        return copy.deepcopy(built[key])

    return build


def stand_in(folder, class_names, **values):
    """A saved detector for other classes, in place of one from a hub."""
    torch.manual_seed(0)
    small = {"d_model": 32, "num_queries": 12, "encoder_layers": 1, "decoder_layers": 1} | values
    small |= {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    create("detr", ClassMap(class_names, tuple(range(len(class_names)))), (64, 64), "resnet10t", overrides=small).save(folder)
    return folder


def test_two_checkpoints_of_other_classes_and_a_folder_become_int8(tmp_path):
    """The first example of the README, with small checkpoints in place of the hub's, in one step of each training."""
    data = write_shapes(tmp_path / "data", 4, 2, (64, 64))
    models = {
        "teacher": stand_in(tmp_path / "large", ("cat", "Square", "dog"), decoder_layers=2),
        "student": stand_in(tmp_path / "small", ("cat", "dog")),
    }
    changes = {f"{role}.training.{key}": value for role in models for key, value in {"max_steps": 1, "batch_size": 2}.items()}
    changes |= {"calibration": 2, "benchmark.repeats": 5, "benchmark.runtimes": ["pytorch"], "gallery": 1}
    results = compress(read_recipe(RECIPES / "finetune.yaml", changes, data, **models), tmp_path / "run")
    assert {row["name"] for row in results["rows"]} == {"teacher", "baseline", "distilled", "distilled-static"}
    classes = class_map_of(find_split(data, "train"))
    graph = export(tmp_path / "run" / "distilled-static", tmp_path / "static.onnx")
    assert open_runtime(graph).class_map == classes
    head, before = (load(tmp_path / folder).model.class_labels_classifier for folder in ("run/teacher", "large"))
    rows = (head.weight[classes.names.index("square")], before.weight[1])
    torch.testing.assert_close(*rows, rtol=0, atol=1e-3)  # one step of its own small rate away


@pytest.mark.parametrize("path", ALL, ids=name)
def test_every_recipe_is_understood(path, tmp_path):
    Run(read_recipe(path), tmp_path / "run")
    assert any(command in path.read_text() for command in (f"leandetr compress recipes/{name(path)}", "make demo"))
    assert not (tmp_path / "run").exists()


def runs_here(path):
    return path.name in ("bccd.yaml", "groceries.yaml") or path.parent.name in ("bccd", "groceries", "coco_person")


@pytest.mark.parametrize("path", [path for path in ALL if runs_here(path)], ids=name)
def test_what_runs_here_fits_together(path, tmp_path, monkeypatch, untrained):
    recipe = read_recipe(path)
    monkeypatch.setattr(Steps, "untrained", untrained)
    said = Run(recipe, tmp_path)._rehearsal()
    assert all(variant.name in said for variant in recipe.compared())
