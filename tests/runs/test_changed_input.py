"""A finished run says so; one whose data, weights or recipe changed does again what the change concerns."""

import json
import shutil

import pytest

from leandetr import verbs
from leandetr.data.shapes import write_shapes
from leandetr.recipe import parse_recipe
from leandetr.runs import compress

TINY = {
    "model": "detr",
    "backbone": "test_resnet",
    "set": {
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
        "num_queries": 4,
    },
    "training": {"max_steps": 1, "batch_size": 2, "workers": 0},
}
VARIANTS = [{"name": "alone"}, {"name": "taught", "distillation": {}, "quantization": [{"scheme": "weight-only"}]}]
STEPS = ("teacher", "alone-seed-0", "taught-seed-0", "taught-weight-only-seed-0")


def recipe(folder):
    return parse_recipe(
        {
            "image_size": [64, 64],
            "data": {"folder": str(folder / "data")},
            "teacher": {"checkpoint": str(folder / "teacher")},
            "student": TINY,
            "variants": [
                {"name": "alone"},
                {"name": "taught", "distillation": {}, "quantization": [{"scheme": "weight-only"}]},
            ],
            "gallery": 0,
        },
        "the recipe",
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with data, a teacher and a finished run of both."""
    folder = tmp_path_factory.mktemp("changed")
    write_shapes(folder / "data", 4, 2, (64, 64))
    alone = {"image_size": [64, 64], "data": {"folder": str(folder / "data")}, "student": TINY, "variants": [{"name": "t"}]}
    compress(parse_recipe(alone, "the teacher's"), folder / "teachers")
    shutil.copytree(folder / "teachers" / "t-seed-0", folder / "teacher")
    compress(recipe(folder), folder / "run")
    return folder


@pytest.fixture
def done(monkeypatch):
    """The folders that are trained or quantized from here on."""
    made = []
    for name in ("train", "distill", "quantize"):
        real = getattr(verbs, name)
        monkeypatch.setattr(verbs, name, lambda *a, real=real, **k: made.append(real(*a, **k)) or made[-1])
    return made


def again(folder, capsys):
    results = compress(recipe(folder), folder / "run")
    assert results["left"] == ""
    return capsys.readouterr().err


def begun(told):
    return [
        line for line in told.splitlines() if line in ("teacher", "alone-seed-0", "taught-seed-0", "taught-weight-only-seed-0")
    ]


def test_nothing_changed_is_said_with_what_it_was_made_from(whole, done, capsys):
    told = " ".join(again(whole, capsys).split())
    assert "was finished before, and nothing that it was made from has changed since (annotations of train " in told
    assert "images of val 2 " in told
    assert done == []


def lose_a_box(folder):
    file = folder / "data" / "annotations" / "instances_train.json"
    coco = json.loads(file.read_text())
    coco["annotations"].pop()
    file.write_text(json.dumps(coco))


def replace_an_image(folder):
    image = sorted((folder / "data" / "val").iterdir())[0]
    image.write_bytes(image.read_bytes() + b"\0")


def train_the_teacher_anew(folder):
    weights = folder / "teacher" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("change", "said", "expected"),
    [
        pytest.param(lose_a_box, "has changed: annotations of train", [*STEPS[1:]], marks=pytest.mark.slow),
        (replace_an_image, "has changed: images of val", [*STEPS[1:]]),
        (train_the_teacher_anew, "has changed: checkpoint ", [STEPS[0], *STEPS[2:]]),
    ],
)
def test_what_changed_in_place_is_made_again(whole, done, capsys, change, said, expected):
    change(whole)
    told = again(whole, capsys)
    assert begun(told) == expected
    assert said in told
    assert "was finished before" not in told
    assert begun(again(whole, capsys)) == []


def test_the_folder_of_an_earlier_version_is_taken_as_it_is(whole, done, capsys):
    for note in (whole / "run" / "steps").glob("*.json"):
        kept = json.loads(note.read_text())
        del kept["state"]
        note.write_text(json.dumps(kept))
    again(whole, capsys)
    assert done == []
    replace_an_image(whole)
    assert begun(again(whole, capsys)) == [*STEPS[1:]]
