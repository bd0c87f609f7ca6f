"""The recipes that come along: each is understood, and what runs here fits together before any data is read."""

import copy
from pathlib import Path

import pytest

from leandetr.detectors.create import create
from leandetr.recipe import read_recipe
from leandetr.runs.run import Run
from leandetr.runs.steps import Steps
from leandetr.structures import ClassMap

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
        size = model.image_size or steps.recipe.image_size
        key = repr((model.model, size, model.backbone, sorted(model.set.items())))
        if key not in built:
            built[key] = create(model.model, ClassMap(("a", "b", "c"), (1, 2, 3)), size, model.backbone, None, model.set)
        return copy.deepcopy(built[key])

    return build


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
