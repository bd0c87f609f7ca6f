"""The recipes that come along: each is understood, and what runs here fits together before any data is read."""

import copy
from pathlib import Path

import pytest
import timm
import torch
from torchvision.models import get_model
from transformers import SwinConfig, SwinForImageClassification

from leandetr.data.coco import class_map_of, find_split
from leandetr.data.shapes import write_shapes
from leandetr.deployment.runtimes import open_runtime
from leandetr.detectors import teachers
from leandetr.detectors.backbones import HUB_SWINS
from leandetr.detectors.build import build as build_detector
from leandetr.detectors.checkpoints.load import load
from leandetr.detectors.create import create
from leandetr.detectors.models.swin_detr import SWINS
from leandetr.recipe import read_recipe
from leandetr.runs import compress
from leandetr.runs.goal_run import GoalRun
from leandetr.runs.run import Run
from leandetr.runs.steps import Steps
from leandetr.structures import ClassMap
from leandetr.verbs import export

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
PARTS = ("scales", "rows")  # what recipes extend, no recipes by themselves
ALL = sorted(path for path in RECIPES.rglob("*.yaml") if path.parent.name not in PARTS)
VARIANTS = [path for path in ALL if path.name != "goal.yaml"]  # that one is not planned but searched
LONG = ("bccd-tau-lambda.yaml", "supplement.yaml")  # a dozen variants each


def name(path):
    return str(path.relative_to(RECIPES))


def rehearsed(path):
    """Those of many variants, and of the papers' scale on COCO and VOC, with the slow tests."""
    scale = name(path).replace("coco_person", "")
    slow = path.name in LONG or "coco" in scale or "voc" in scale
    return pytest.param(path, marks=pytest.mark.slow if slow else ())


#: layers and widths that make a paper's model small and leave its kind, its queries and what it is made of
DEPTHS = {"encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
CLASSES = ClassMap(("person", "dog", "cat"), (1, 2, 3))  # which detectors of COCO know
SMALL = {"resnet50": "test_resnet", "resnet101": "test_resnet", "swin_base": "swin_tiny"}


#: hub id, or folder that another command fills -> the short name and the backbone of its small stand-in
STAND_INS = {
    "runs/fod-teacher": ("adamixer", "test_resnet"),
    "runs/fod-trimmed": ("adamixer", "test_resnet"),
    "runs/fod-rt-detr-teacher": ("rt_detr_v2", "test_resnet"),
    "PekingU/rtdetr_v2_r50vd": ("rt_detr_v2", "test_resnet"),
    "PekingU/rtdetr_v2_r18vd": ("rt_detr_v2", "test_resnet"),
    "ustc-community/dfine-small-coco": ("d_fine", "test_resnet"),
    "Roboflow/rf-detr-base": ("rf_detr", None),
}
#: values of the stand-ins; RF-DETR has no encoder, and a backbone of its own
SMALLER = {"d_model": 32, "decoder_layers": 2, "num_queries": 12, "decoder_ffn_dim": 32}
VIT = {"num_hidden_layers": 2, "num_attention_heads": 2, "out_indices": [2], "hidden_size": 32, "patch_size": 16}
VIT |= {"num_windows": 2}


def stand_in_of(checkpoint, classes):
    """A small untrained detector of the same family."""
    model, backbone = STAND_INS[checkpoint]
    own = {f"backbone_config.{key}": value for key, value in VIT.items()} if backbone is None else {"encoder_ffn_dim": 32}
    own = {} if model == "adamixer" else own  # which has no encoder either
    return create(model, classes, (64, 64), backbone, overrides=SMALLER | own)


def from_checkpoint(checkpoint, model):
    """As `Steps.untrained` builds it; what is not here has a small stand-in."""
    if checkpoint in STAND_INS:
        return stand_in_of(checkpoint, CLASSES)
    folder = RECIPES.parent / checkpoint
    local = model.model_copy(update={"checkpoint": folder})
    return build_detector(local, load(folder).class_map) if model.is_trained else load(folder)


@pytest.fixture(scope="module")
def untrained():
    """As `Steps.untrained`, for three classes, each model built once: without weights of a backbone but the hub's, which are
    another model's; one of a paper's scale with fewer layers, and a small backbone of the same kind."""
    built = {}

    def build(steps, model):
        model = model if model.model is not None else steps.recipe.student  # for a checkpoint that others train
        if model.model is None:
            return from_checkpoint(str(model.checkpoint), model)
        size, backbone, values = model.image_size or steps.recipe.image_size, model.backbone, dict(model.set)
        if backbone in SMALL:
            backbone, shallow = SMALL[backbone], {"decoder_layers": 2} if model.model == "adamixer" else DEPTHS
            values |= {key: min(value, values.get(key, value)) for key, value in shallow.items()}
            size = (64, 64) if isinstance(size, tuple) else 64
        weights = "hub" if model.weights == "hub" else None
        key = repr((model.model, size, backbone, weights, sorted(values.items())))
        if key not in built:
            built[key] = create(model.model, CLASSES, size, backbone, weights, values)
        return copy.deepcopy(built[key])

    return build


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Stands for the hubs of timm, transformers and torchvision: their models, untrained."""
    folder, real = tmp_path_factory.mktemp("hub"), timm.create_model
    tiny = SwinConfig(**SWINS["swin_tiny"], num_labels=3)
    SwinForImageClassification(tiny).save_pretrained(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm, "create_model", lambda name, pretrained=False, **others: real(name, **others))
        patch.setitem(HUB_SWINS, (96, (2, 2, 6, 2)), str(folder))
        patch.setattr(teachers, "_downloaded", lambda name: get_model(name, weights=None, weights_backbone=None).state_dict())
        yield


def stand_in(folder, class_names, **values):
    """A saved detector for other classes, in place of one from a hub."""
    torch.manual_seed(0)
    small = {"d_model": 32, "num_queries": 12, "encoder_layers": 1, "decoder_layers": 1} | values
    small |= {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    create("detr", ClassMap(class_names, tuple(range(len(class_names)))), (64, 64), "test_resnet", overrides=small).save(folder)
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


@pytest.mark.usefixtures("few_steps")
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=() if path.name == "rf_detr_base.yaml" else pytest.mark.slow)
        for path in sorted((RECIPES / "public").iterdir())
    ],
    ids=name,
)
def test_a_published_checkpoint_is_taken_as_it_is_and_becomes_integers(path, tmp_path):
    """The whole run, with a small untrained detector of the same family in place of the hub's."""
    data = write_shapes(tmp_path / "data", 4, 2, (64, 64))
    published = stand_in_of(str(read_recipe(path).student.checkpoint), class_map_of(find_split(data, "train")))
    published.save(tmp_path / "published")
    changes = {"student.checkpoint": str(tmp_path / "published"), "calibration": 2, "gallery": 0}
    changes |= {"benchmark.repeats": 5, "benchmark.runtimes": ["pytorch"]}
    results = compress(read_recipe(path, changes, data), tmp_path / "run")
    assert [row["name"] for row in results["rows"]] == ["published", "published-static", "published-weights-4"]
    assert results["rows"][2]["size_bytes"] < results["rows"][1]["size_bytes"] < results["rows"][0]["size_bytes"]


def test_a_checkpoint_and_a_goal_become_a_file(tmp_path):
    """A goal that the teacher meets as it is, so that the whole way is gone without a training: from a checkpoint to the
    file, measured on ONNX Runtime, and the page."""
    data = write_shapes(tmp_path / "data", 4, 4, (64, 64))
    teacher = stand_in(tmp_path / "teacher", class_map_of(find_split(data, "train")).names)
    changes = {"goal.max_ap_drop": None, "goal.latency_ms": 1e6, "gallery": 1}
    results = compress(read_recipe(RECIPES / "goal.yaml", changes, data, teacher), tmp_path / "run")
    assert results["goal"]["met"]
    assert [row["name"] for row in results["rows"]] == ["teacher"]
    assert results["goal"]["reported"]["images"] == 2
    assert open_runtime(tmp_path / "run" / "chosen.onnx").class_map == load(teacher).class_map
    assert (tmp_path / "run" / "images.html").exists()


@pytest.mark.parametrize("path", ALL, ids=name)
def test_every_recipe_is_understood(path, tmp_path):
    recipe = read_recipe(path)
    if path in VARIANTS:
        Run(recipe, tmp_path / "run")
    else:
        GoalRun(recipe, tmp_path / "run")
    assert any(command in path.read_text() for command in (f"leandetr compress recipes/{name(path)}", "make demo"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("path", map(rehearsed, VARIANTS), ids=[name(path) for path in VARIANTS])
def test_every_recipe_fits_together(path, tmp_path, monkeypatch, untrained, hub):
    recipe = read_recipe(path)
    monkeypatch.setattr(Steps, "untrained", untrained)
    said = Run(recipe, tmp_path)._rehearsal()
    assert all(variant.name in said for variant in recipe.compared())
