"""Numbers that are not finite are said, and the same seed gives the same bytes."""

import pytest
import torch

from leandetr.data.shapes import write_shapes
from leandetr.deployment.metadata import Metadata
from leandetr.deployment.runtime import Runtime
from leandetr.detectors.checkpoints.load import load
from leandetr.detectors.create import create
from leandetr.errors import UserError
from leandetr.heads import Head
from leandetr.structures import ClassMap, Preprocessing

SIDE = 64
SMALL = {"d_model": 64, "decoder_layers": 2, "num_queries": 6, "decoder_ffn_dim": 32, "encoder_layers": 1}
FAMILIES = ["detr", "conditional_detr", "deformable_detr", "rt_detr", "rt_detr_v2"]


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_model_whose_weights_are_not_finite_is_refused_by_name(classes, tmp_path, value):
    detector = create("detr", classes, (SIDE, SIDE), backbone="test_resnet", overrides=SMALL)
    with torch.no_grad():
        detector.model.model.decoder.layers[1].encoder_attn.k_proj.weight[3, 4] = value
    detector.save(tmp_path / "model")
    with pytest.raises(UserError, match=r"decoder\.layers\.1\.encoder_attn\.k_proj\.weight holds numbers that are not finite"):
        load(tmp_path / "model")


class Overflown(Runtime):
    """An engine whose arithmetic has ended in NaN."""

    name = "engine"

    def run(self, pixel_values, pixel_mask):
        logits = torch.zeros(len(pixel_values), 6, 2)
        logits[0, 3, 1] = float("nan")
        return logits, torch.full((len(pixel_values), 6, 4), 0.5)


def test_answers_that_are_not_numbers_are_no_empty_answers():
    classes = ClassMap(("disc", "ring"), (1, 2))
    about = Metadata(classes, Preprocessing(size=(SIDE, SIDE)), Head.SIGMOID, parameters=1, scheme=None, provenance={})
    with pytest.raises(UserError, match=r"model\.onnx on engine answers with numbers that are not finite"):
        Overflown("model.onnx", 1, about).predict(torch.zeros(SIDE, SIDE, 3, dtype=torch.uint8).numpy())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("data") / "shapes", 4, 2, (SIDE, SIDE))


def bytes_of(folder):
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("name", [*FAMILIES[:1], *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES[1:])])
def test_the_same_seed_gives_the_same_bytes(run, tmp_path, data, name):
    settings = [part for key, value in SMALL.items() if key != "num_queries" for part in ("--set", f"model.{key}={value}")]
    new = ["--image-size", SIDE, SIDE, "--backbone", "test_resnet", "--queries", 6, *settings, "--set", "training.workers=0"]
    schedule = ["--data", data, "--epochs", 1, "--batch-size", 2, "--seed", 7]
    for out in (tmp_path / "first", tmp_path / "second"):
        assert run("train", "--model", name, *schedule, *new, "--out", out / "float")[0] == 0
        taught = ["--student", name, "--teacher", tmp_path / "first/float", "--method", "fitnet,logits"]
        assert run("distill", *taught, *schedule, *new, "--out", out / "taught")[0] == 0
        calibrated = ["--data", data, "--scheme", "static", "--calibration", 2, "--device", "cpu"]
        assert run("quantize", out / "taught", *calibrated, "--out", out / "static")[0] == 0
    for step in ("float", "taught", "static"):
        assert bytes_of(tmp_path / "first" / step) == bytes_of(tmp_path / "second" / step), step
    assert run("train", "--model", name, *schedule[:-1], 8, *new, "--out", tmp_path / "other")[0] == 0
    assert bytes_of(tmp_path / "other") != bytes_of(tmp_path / "first/float")
