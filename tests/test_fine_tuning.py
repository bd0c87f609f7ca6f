"""What the commands promise where a trained detector is trained further: what is frozen stays to the bit, sizes and numbers of
queries are those that were asked for, and an image with more objects than queries is named."""

import json

import pytest
import torch

from leandetr import compress, verbs
from leandetr.data.coco import find_split
from leandetr.data.shapes import write_shapes
from leandetr.detectors.checkpoints.load import load
from leandetr.detectors.create import create
from leandetr.detectors.spec import NewDetector
from leandetr.distillation import Teaching
from leandetr.recipe import parse_recipe
from leandetr.structures import ClassMap

SMALL = {"d_model": 32, "decoder_layers": 2, "encoder_layers": 1, "num_queries": 6, "decoder_ffn_dim": 32}
SHORT = ["--max-steps", "2", "--batch-size", "2", "--set", "training.workers=0", "--set", "training.precision=float32"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("shapes") / "data", 4, 2, (64, 64))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """An RT-DETRv2 of two of the shapes and another class, whose backbone has BatchNorms that learn."""
    torch.manual_seed(0)
    detector = create("rt_detr_v2", ClassMap(("disc", "fox", "star"), (1, 2, 3)), (64, 64), "test_resnet", overrides=SMALL)
    folder = tmp_path_factory.mktemp("checkpoint") / "saved"
    detector.save(folder)
    return folder


@pytest.mark.parametrize("part", ["backbone", "encoder"])
def test_what_is_frozen_is_saved_as_it_was(run, data, checkpoint, tmp_path, part):
    out = tmp_path / "out"
    status, _, err = run("train", "--data", data, "--model", checkpoint, "--freeze", part, *SHORT, "--out", out)
    assert (status, "kept 2 of the classes (disc, star)" in err) == (0, True)
    then, now = (load(folder).model.state_dict() for folder in (checkpoint, out))
    frozen = ("model.backbone.",) if part == "backbone" else ("model.backbone.", "model.encoder", "model.decoder_input_proj.")
    kept, learned = ([key for key in then if key.startswith(frozen) is which] for which in (True, False))
    assert any("running_mean" in key for key in kept)
    assert all(torch.equal(now[key], then[key]) for key in kept)
    for part_that_learns in ("model.decoder.layers.", "model.encoder.") if part == "backbone" else ("model.decoder.layers.",):
        assert any(not torch.equal(now[key], then[key]) for key in learned if key.startswith(part_that_learns))


@pytest.mark.slow
def test_the_size_and_the_queries_that_were_asked_for_are_saved_and_evaluated_with(run, data, checkpoint, tmp_path):
    out = tmp_path / "out"
    asked = ["--queries", "4", "--image-size", "64", "96"]
    assert run("train", "--data", data, "--model", checkpoint, *asked, *SHORT, "--out", out)[0] == 0
    assert json.loads((out / "config.json").read_text())["num_queries"] == 4
    assert json.loads((out / "preprocessor_config.json").read_text())["size"] == {"height": 64, "width": 96}
    found = load(out)
    shapes = []
    found.model.register_forward_pre_hook(lambda _, a, k: shapes.append(tuple(k["pixel_values"].shape[2:])), with_kwargs=True)
    with torch.no_grad():
        assert found(torch.zeros(1, 3, 64, 96)).logits.shape[-2:] == (4, 6)
    assert run("evaluate", out, "--data", data, "--json", tmp_path / "ap.json")[0] == 0
    assert run("export", out, "--out", tmp_path / "model.onnx")[0] == 0
    assert verbs.evaluate(tmp_path / "model.onnx", data).ap == pytest.approx(verbs.evaluate(out, data).ap, abs=1e-6)
    assert set(shapes) == {(64, 96)}


class Stopped(Exception):
    """Nothing is trained."""


def stop(*_, **__):
    raise Stopped


@pytest.mark.parametrize("verb", ["train", "distill", "compress"])
def test_an_image_with_more_objects_than_queries_is_named(data, checkpoint, tmp_path, monkeypatch, capsys, verb):
    split = find_split(data, "train")
    annotations = json.loads(split.annotations.read_text())
    entries = [entry["image_id"] for entry in annotations["annotations"]]
    most = max(set(entries), key=lambda image: (entries.count(image), -image))
    (name,) = [image["file_name"] for image in annotations["images"] if image["id"] == most]
    count, over = entries.count(most), sum(entries.count(image) > 1 for image in set(entries))
    monkeypatch.setattr(verbs.fitting, "fit", stop)
    new, out = {"checkpoint": str(checkpoint), "queries": 1}, tmp_path / "out"
    recipe = {"data": {"folder": str(data)}, "teacher": new | {"training": {}}, "student": new | {"training": {}}}
    calls = {
        "train": lambda: verbs.train(data, NewDetector(**new), out),
        "distill": lambda: verbs.distill(data, Teaching(teacher=checkpoint, method="fitnet"), NewDetector(**new), out),
        "compress": lambda: compress(parse_recipe(recipe | {"distillation": {"method": "fitnet"}}, "the recipe"), out),
    }
    with pytest.raises(Stopped):
        calls[verb]()
    said = f"{over} training images have more objects than the detector has queries (1), {split.images / name} the most"
    err = capsys.readouterr().err
    assert f"{said} ({count}); ask for --queries {count} or more" in err
    assert ("has other classes than the data; fitnet goes on without its logits" in err) == (verb == "distill")
