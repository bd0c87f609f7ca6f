"""What the command line promises for bad input: one sentence that names the file or key and the mend, exit status 2, no
traceback, nothing left behind; and for every command an example that its own options understand."""

import errno
import importlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
import yaml

import leandetr
from leandetr import cli
from leandetr.data.coco import class_map_of, find_split
from leandetr.data.shapes import write_shapes
from leandetr.detectors.create import create
from leandetr.errors import UserError
from leandetr.files import writing
from leandetr.structures import ClassMap

SMALL = {"d_model": 32, "decoder_layers": 2, "encoder_layers": 1, "num_queries": 4, "decoder_ffn_dim": 32}
DETR = ["--model", "detr", "--backbone", "test_resnet", "--image-size", "64", "64", "--max-steps", "1", "--batch-size", "1"]
DISTILL = ["distill", "--data", "{data}", "--teacher", "{saved}"]
STUDENT = ["--student", "detr", "--backbone", "test_resnet", "--image-size", "64", "64"]
DETR += [part for key, value in SMALL.items() for part in ("--set", f"model.{key}={value}")]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("shapes") / "data", 2, 1, (64, 64))


@pytest.fixture
def data(shapes, tmp_path):
    """A copy that a test may spoil."""
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "val"):
        (folder / split).mkdir()
        for image in (shapes / split).iterdir():
            (folder / split / image.name).write_bytes(image.read_bytes())
    (folder / "annotations").mkdir()
    for file in (shapes / "annotations").iterdir():
        (folder / "annotations" / file.name).write_text(file.read_text())
    return folder


@pytest.fixture
def saved(tmp_path):
    """A detector whose classes are none of the shapes."""
    torch.manual_seed(0)
    create("detr", ClassMap(("cat", "dog"), (1, 2)), (64, 64), "test_resnet", overrides=SMALL).save(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def refused(run):
    """refused(sentence, *arguments): exit status 2 and one line that fits the pattern."""

    def check(sentence, *arguments):
        status, out, err = run(*arguments)
        last = err.strip().splitlines()[-1]
        assert status == 2, err
        assert "Traceback" not in err
        assert last.startswith("error: ")
        assert re.search(sentence, last), last
        assert out == ""

    return check


def edit(file, change):
    coco = json.loads(file.read_text())
    change(coco)
    file.write_text(json.dumps(coco))


def spoil_json(data):
    (data / "annotations" / "instances_train.json").write_text('{"some": "thing"}')


def forget_a_category(data):
    edit(data / "annotations" / "instances_train.json", lambda coco: coco["annotations"][0].update(category_id=99))


def empty(data):
    edit(data / "annotations" / "instances_train.json", lambda coco: coco.update(images=[], annotations=[]))


def empty_every_box(data):
    edit(
        data / "annotations" / "instances_train.json",
        lambda coco: [box.update(bbox=[1, 1, 0, 5]) for box in coco["annotations"]],
    )


def lose_an_image(data):
    (data / "train" / "000001.jpg").unlink()


def truncate_images(data):
    for image in (data / "train").iterdir():
        image.write_bytes(image.read_bytes()[:200])


def replace_images(data):
    for image in (data / "train").iterdir():
        image.write_text("this is no photograph")


@pytest.mark.usefixtures("few_steps")
@pytest.mark.parametrize(
    ("given", "images"),
    [
        (["--data", "{data}"], 2),  # all there are
        (["--set", "calibration_images=0"], 0),
    ],
)
def test_few_bits_are_rounded_with_images_unless_none_are_asked_for(run, refused, shapes, tmp_path, given, images):
    classes = class_map_of(find_split(shapes, "train"))
    create("detr", classes, (64, 64), "test_resnet", overrides=SMALL).save(tmp_path / "float")
    given = [part.format(data=shapes) for part in given]
    asked = ["quantize", tmp_path / "float", "--scheme", "weight-only", "--bits=4", "--out", tmp_path / "int4"]
    refused("no data: give --data FOLDER", *asked)
    status, _, err = run(*asked, *given)
    assert status == 0, err
    config = json.loads((tmp_path / "int4/config.json").read_text())
    assert config["quantization_config"]["scheme"]["calibration_images"] == images


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (spoil_json, "instances_train.json is not COCO: it has no list of 'images'; "),
        (forget_a_category, "instances_train.json has a box of category 99, which its 'categories' lack; "),
        (empty, "instances_train.json lists no images; "),
        (empty_every_box, "instances_train.json has no usable box to learn from; `leandetr data check`"),
        (lose_an_image, "000001.jpg; restore"),
    ],
)
def test_training_on_faulty_data_leaves_nothing_and_goes_on_when_mended(refused, data, tmp_path, spoil, sentence):
    spoil(data)
    refused(sentence, "train", "--data", data, *DETR, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_validation_images_are_drawn_and_the_draw_is_written_down(run, refused, data, tmp_path):
    shutil.rmtree(data / "val")
    (data / "annotations" / "instances_val.json").unlink()
    train = ["train", "--data", data, *DETR, "--out", tmp_path / "out"]
    refused("data has no val split, only train; .* add --val-fraction 0.2 to take some of train", *train)
    refused("a validation fraction of 1.5 cannot be", *train, "--val-fraction", 1.5)
    refused("--val-group is of a draw; add --val-fraction", *train, "--val-group", "a")
    status, _, err = run(*train, "--val-fraction", 0.5, "--val-seed", 3)
    assert status == 0, err
    drawn = json.loads((tmp_path / "out" / "split.json").read_text())
    assert {key: drawn[key] for key in ("fraction", "seed", "group")} == {"fraction": 0.5, "seed": 3, "group": None}
    assert sorted(drawn["train"] + drawn["val"]) == sorted(image.name for image in (data / "train").iterdir())
    assert len(drawn["val"]) == 1
    refused("out holds the result of other settings", *train, "--val-fraction", 0.5, "--val-seed", 4)


@pytest.mark.parametrize("name", ["[/x].png", "[red]a.png", "\ud800.png"])
def test_square_brackets_and_broken_letters_of_names_are_printed_as_they_are(run, shapes, tmp_path, name):
    """Rich takes [/x] for the end of a style that has not begun, and no terminal can encode half a letter."""
    folder = tmp_path / "[/y]"
    shutil.copytree(shapes, folder)
    file = folder / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    content["images"][0]["file_name"] = content["categories"][0]["name"] = name
    file.write_text(json.dumps(content))
    status, out, err = run("data", "check", folder)
    assert status != 0
    assert "missing image" in out
    assert "Traceback" not in err
    assert ("[/x]" if name[1] == "/" else "[red]" if name[1] == "r" else "ud800") in out


def test_brackets_without_end_are_no_json(run, shapes, tmp_path):
    folder = tmp_path / "deep"
    shutil.copytree(shapes, folder)
    (folder / "annotations" / "instances_val.json").write_text("[" * 100_000)
    status, _, err = run("data", "check", folder)
    assert status == 2
    assert re.fullmatch("error: .*instances_val.json is not JSON .*\n", err)


def test_an_ap_of_nothing_is_a_dash(run, data, tmp_path):
    edit(data / "annotations" / "instances_val.json", lambda coco: coco.update(annotations=[]))
    status, _, err = run("train", "--data", data, *DETR, "--out", tmp_path / "out")
    assert status == 0, err
    assert "AP – (best –)" in err
    assert "-1.0" not in err


@pytest.mark.parametrize("spoil", [truncate_images, replace_images])
@pytest.mark.parametrize("workers", [0, 1], ids=["here", "in a worker"])
def test_an_image_that_cannot_be_read_is_named(refused, data, tmp_path, spoil, workers):
    spoil(data)
    arguments = ["--set", f"training.workers={workers}", "--out", tmp_path / "out"]
    refused(r"train/00000\d.jpg", "train", "--data", data, *DETR, *arguments)
    assert not (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "rtdetr"], "unknown model|rtdetr: no such folder"),
        (["--image-size", "16", "64"], "image size 16 64: detr needs at least 32 pixels; the nearest valid size is 32 64"),
        (["--model", "swin_detr", "--backbone", "swin_tiny", "--set", "model.stages=[2,5]"], r"stages .*\[2, 5\]"),
        (["--backbone", "resnet19"], "unknown backbone 'resnet19': did you mean 'resnet1"),
        (["--set", "model.decoder_layer=3"], "model.decoder_layer: .*did you mean model.decoder_layers"),
        (["--set", "training.epoch=3"], "unknown key 'epoch': did you mean 'epochs'"),
        (["--set", "training.schedule=linear"], "training: schedule: input should be 'cosine' or 'step'"),
        (["--set", "decoder_layers=3"], "--set decoder_layers: begin it with model. or training."),
        (["--set", "model.decoder_layers"], "--set model.decoder_layers: write KEY=VALUE"),
        (["--set", "model.decoder_layers=[3"], "--set model.decoder_layers=.3: .* is no value"),
        (["--set", "training.augment=flipp"], "unknown augmentation 'flipp': did you mean 'flip'"),
        (["--weights", "nowhere.safetensors"], "nowhere.safetensors: no such file; "),
        (["--data", "/nowhere"], "/nowhere does not exist; "),
    ],
)
def test_training_with_a_mistake_in_the_command_leaves_nothing(refused, shapes, tmp_path, arguments, sentence):
    refused(sentence, "train", "--data", shapes, *DETR, *arguments, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_new_model_needs_a_size(refused, shapes, tmp_path):
    refused("add --image-size", "train", "--data", shapes, "--model", "detr", "--out", tmp_path / "out")


def test_data_must_be_given(refused, tmp_path):
    refused("no data: give --data FOLDER", "train", *DETR, "--out", tmp_path / "out")


def test_a_folder_that_is_not_ours_is_not_touched(refused, shapes, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "dear.jpg").write_text("dear")
    refused("photos exists and is not an output of leandetr; ", "train", "--data", shapes, *DETR, "--out", tmp_path / "photos")
    refused("photos", "data", "shapes", "--out", tmp_path / "photos")
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["dear.jpg"]


def test_a_place_that_cannot_be_written_is_named(refused, shapes, tmp_path):
    (tmp_path / "file").write_text("in the way")
    below = tmp_path / "file" / "out"
    refused(f"{tmp_path / 'file'}", "train", "--data", shapes, *DETR, "--out", below)
    refused(f"cannot write {below}", "data", "shapes", "--out", below, "--train", 1, "--val", 1)


def spoil_pickle(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Path("there")}, folder / "pytorch_model.bin")  # an object, which could be code


def spoil_length(folder):
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000])


def spoil_architecture(folder):
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "conditional_detr"}
    (folder / "config.json").write_text(json.dumps(config))


def spoil_shapes(folder):
    config = json.loads((folder / "config.json").read_text()) | {"num_queries": 9, "decoder_ffn_dim": 48}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda folder: None, r"cat, dog"),
        (spoil_shapes, r"saved: 7 weights do not fit its config.json \(model\.\S+, model\.\S+, model\.\S+\)"),
        (spoil_pickle, "saved: its weights cannot be read"),
        (spoil_length, "model.safetensors is truncated"),
        (spoil_architecture, "do not fit its config.json"),
    ],
    ids=["other classes", "other shapes", "pickle", "truncated", "other architecture"],
)
def test_a_model_that_cannot_be_evaluated(refused, shapes, saved, tmp_path, spoil, sentence):
    spoil(saved)
    refused(sentence, "evaluate", saved, "--data", shapes, "--json", tmp_path / "numbers.json")
    assert not (tmp_path / "numbers.json").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["quantize", "{saved}", "--data", "{data}", "--scheme", "statik", "--out", "{out}"],
            "unknown .*'statik': did you mean 'static'",
        ),
        (["quantize", "{saved}", "--scheme", "dynamic", "--set", "wieghts=3", "--out", "{out}"], "wieghts"),
        (["quantize", "{saved}", "--scheme", "dynamic", "--epochs", "3", "--out", "{out}"], "--epochs: dynamic is not trained"),
        (["quantize", "{saved}", "--scheme", "static", "--engine", "openvino", "--out", "{out}"], "--engine: .* --max-ap-drop"),
        (
            [
                "distill",
                "--data",
                "{data}",
                "--teacher",
                "{saved}",
                "--student",
                "{saved}",
                "--method",
                "logit",
                "--out",
                "{out}",
            ],
            "'logit'",
        ),
        (
            [
                "distill",
                "--data",
                "{data}",
                "--teacher",
                "{saved}",
                "--student",
                "{saved}",
                "--weight",
                "a=b",
                "--out",
                "{out}",
            ],
            "--weight a=b: give a number",
        ),
        (
            [
                "distill",
                "--data",
                "{data}",
                "--teacher",
                "{saved}",
                "--student",
                "{saved}",
                "--method",
                "drd",
                "--option",
                "drd.tau=2",
                "--out",
                "{out}",
            ],
            "tau of the drd term is 2; give a number from 0 to 1",
        ),
        (["pretrain", "--backbone", "resnet81", "--data", "{data}", "--out", "{out}"], "unknown backbone 'resnet81'"),
        (
            [
                "pretrain",
                "--backbone",
                "test_resnet",
                "--set",
                "backbone_config.deptsh=1",
                "--data",
                "{data}",
                "--out",
                "{out}",
            ],
            "deptsh",
        ),
        (["pretrain", "--backbone", "test_resnet", "--data", "{data}/nowhere", "--out", "{out}"], "nowhere does not exist"),
        (
            [*DISTILL, "--student", "{saved}", "--method", "fitnet", "--weight", "fitnet=-1", "--out", "{out}"],
            "weight of the distillation term 'fitnet' is -1; give 0 or more",
        ),
        (
            [*DISTILL, *STUDENT, "--out", "{out}"],
            "the teacher does not know .*: it has the classes cat, dog, and the student has .*; name a teacher",
        ),
        (["evaluate", "{saved}", "--data", "{data}", "--queries", "both"], "the detector has object queries alone; "),
        (["export", "{saved}", "--to", "onyx", "--out", "{out}"], "unknown format 'onyx'"),
        (["evaluate", "{saved}", "--data", "{data}", "--split", "test"], "test"),
        (["evaluate", "/nowhere/model", "--data", "{data}"], "/nowhere/model: no such folder; "),
        (["evaluate", "/nowhere/model.onnx", "--data", "{data}"], "/nowhere/model.onnx"),
        (["quantize", "{saved}", "--scheme", "static", "--out", "{out}"], "no data: give --data FOLDER"),
        (
            ["quantize", "{saved}", "--scheme", "low-bit", "--method", "logits", "--data", "{data}", "--out", "{out}"],
            "--method, --weight and --option say how to learn from a teacher: name it with --teacher",
        ),
        (
            ["export", "{saved}", "--image-size", "0", "64", "--out", "{out}.onnx"],
            "image size 0 64: detr needs at least 32 pixels",
        ),
        (["analyze", "similarity", "{saved}", "--data", "{data}", "--out", "{out}"], "has no distillation queries"),
        (["analyze", "stability", "{saved}", "--out", "{out}"], "no data: give --data FOLDER"),
        (["analyze", "masks", "{saved}", "--data", "{data}", "--out", "{out}"], "class"),
    ],
    ids=[
        *("scheme", "option", "not trained", "no budget", "method", "weight", "tau", "backbone", "key", "images"),
        *("negative-weight", "other-teacher", "queries", "format", "split", "folder", "file"),
        *("no-calibration", "method-without-teacher", "size", "no-queries", "no-data", "other-classes"),
    ],
)
def test_other_commands_name_what_they_do_not_know(refused, shapes, saved, tmp_path, arguments, sentence):
    out = tmp_path / "out"
    refused(sentence, *(part.format(saved=saved, data=shapes, out=out) for part in arguments))
    assert not out.exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "found.json: No such file or directory; "),
        ('[{"image_id": 1', "found.json is not JSON"),
        ('{"annotations": []}', "found.json is not a list of detections in COCO's results format; "),
        ('[{"image_id": 1, "score": 0.5}]', "detection 0 is not in COCO's results format"),
    ],
    ids=["missing", "truncated", "other JSON", "other entries"],
)
@pytest.mark.parametrize("command", ["distill", "evaluate"])
def test_predictions_that_cannot_be_read(refused, shapes, tmp_path, content, sentence, command):
    file = tmp_path / "found.json"
    if content is not None:
        file.write_text(content)
    student = ["--student", "detr", *DETR[2:], "--method", "hard-label", "--out", tmp_path / "out"]
    arguments = {"distill": ["--teacher", file, *student], "evaluate": [file]}[command]
    refused(sentence, command, "--data", shapes, *arguments)
    assert not (tmp_path / "out").exists()


def test_vocs_numbers_stand_beside_cocos(run, shapes, tmp_path):
    truth = json.loads((shapes / "annotations" / "instances_val.json").read_text())
    found = [entry | {"score": 0.5} for entry in truth["annotations"]]
    (tmp_path / "found.json").write_text(json.dumps(found))
    arguments = ["evaluate", tmp_path / "found.json", "--data", shapes, "--json", tmp_path / "numbers.json"]
    status, out, err = run(*arguments, "--voc")
    assert status == 0, err
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert (numbers["ap50"], numbers["voc"]["ap50"]) == pytest.approx((1, 1))
    assert set(numbers["voc"]["per_class"]) == {category["name"] for category in truth["categories"]}
    assert "VOC AP50 of disc" in out
    assert "VOC" not in run(*arguments)[1]


def test_every_number_of_an_evaluation_is_written_and_what_is_undefined_is_null(run, shapes, tmp_path):
    truth = json.loads((shapes / "annotations" / "instances_val.json").read_text())
    first, *others = truth["categories"]
    truth["annotations"] = [entry | {"category_id": first["id"], "area": 100} for entry in truth["annotations"]]
    (tmp_path / "val.json").write_text(json.dumps(truth))
    (tmp_path / "found.json").write_text("[]")
    numbers = tmp_path / "numbers.json"
    given = ["--annotations", tmp_path / "val.json", "--images", shapes / "val", "--voc", "--json", numbers]
    assert run("evaluate", tmp_path / "found.json", *given, "--split", "train")[0] == 0
    written = json.loads(numbers.read_text())
    assert (written["ap"], written["ap_small"], written["ap_large"]) == (0, 0, None)
    for per_class in (written["per_class"], written["voc"]["per_class"]):
        assert per_class == {first["name"]: 0} | {other["name"]: None for other in others}


@pytest.mark.parametrize("known", ["sizes and names", "ids alone"])
def test_results_have_their_published_numbers_without_any_image(run, shared, tmp_path, known):
    references = shared / "data" / "eval_refs"
    if not references.is_dir():
        pytest.skip(f"needs the reference cases in {references}")
    cases = json.loads((references / "expected.json").read_text())["cases"]
    assert len(cases) >= 5
    for name, case in cases.items():
        truth = references / case["gt"]
        if known == "ids alone":
            coco = json.loads(truth.read_text())
            truth = tmp_path / f"{name}-truth.json"
            truth.write_text(json.dumps(coco | {"images": [{"id": image["id"]} for image in coco["images"]]}))
        file = tmp_path / f"{name}.json"
        status, _, err = run("evaluate", references / case["dt"], "--annotations", truth, "--json", file)
        assert (status, err) == (0, ""), name
        found = [-1 if number is None else number for key, number in json.loads(file.read_text()).items() if key != "per_class"]
        assert found == pytest.approx(case["expected"] or case["pycocotools_here"], abs=1e-9), name


def test_results_need_no_images_of_a_folder_and_a_model_does(run, refused, shapes, saved, tmp_path):
    file = tmp_path / "data" / "annotations" / "instances_val.json"
    file.parent.mkdir(parents=True)
    file.write_text((shapes / "annotations" / "instances_val.json").read_text())
    found = [entry | {"score": 0.5} for entry in json.loads(file.read_text())["annotations"]]
    (tmp_path / "found.json").write_text(json.dumps(found))
    assert run("evaluate", tmp_path / "found.json", "--data", tmp_path / "data")[0] == 0
    assert leandetr.evaluate(tmp_path / "found.json", {"val": file}).ap == pytest.approx(1)
    refused("data has no folder val/", "evaluate", saved, "--data", tmp_path / "data")
    refused("instances_val.json is given without its images; ", "evaluate", saved, "--annotations", file)


def test_a_sound_data_set_is_summed_up(run, shapes, tmp_path):
    status, out, _ = run("data", "check", shapes, "--json", tmp_path / "found.json")
    written = json.loads((tmp_path / "found.json").read_text())
    assert (status, written["train"]["images"], written["val"]["faults"]) == (0, 2, [])
    assert "train: 2 images, " in out
    assert f"{shapes}: COCO (annotations/instances_train.json)\n" in out


def test_a_check_says_as_what_a_folder_was_recognised(run, shapes, tmp_path, caplog):
    folder = tmp_path / "unpacked" / "yolo"
    for part in ("images", "labels"):
        (folder / part / "train").mkdir(parents=True)
    shutil.copy(next((shapes / "train").iterdir()), folder / "images" / "train" / "a.jpg")
    (folder / "labels" / "train" / "a.txt").write_text("0 0.5 0.5 0.5 0.5")
    (folder / "data.yaml").write_text("names: [disc]\ntrain: ../images")
    status, out, err = run("data", "check", tmp_path / "unpacked")
    assert status == 0, err
    assert f"{tmp_path}/unpacked/yolo: YOLO (a YAML file)\n" in out
    assert "  data.yaml: train images ../images are not there" in out
    assert f"{tmp_path}/unpacked: the data set is read in {tmp_path}/unpacked/yolo" in caplog.text


def test_the_version_is_said(run):
    status, out, _ = run("--version")
    assert (status, out.strip()) == (0, leandetr.__version__)


@pytest.mark.slow
def test_an_openvino_model_has_the_size_of_both_files(run, saved, tmp_path):
    pytest.importorskip("openvino")
    status, out, _ = run("export", saved, "--to", "openvino", "--out", tmp_path / "m.xml")
    size = sum((tmp_path / name).stat().st_size for name in ("m.xml", "m.bin"))
    assert (status, out.split()[-2:]) == (0, [f"{size / 1e6:.2f}", "MB"])


def test_a_recipe_with_an_unknown_key(refused, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        yaml.safe_dump({"data": {"shapes": {}}, "image_size": [64, 64], "teecher": {}, "student": {"model": "detr"}})
    )
    refused(r"mine.yaml: (unknown key 'teecher': did you mean 'teacher'|teacher: field required)", "compress", file)
    refused("cannot read the recipe nowhere.yaml", "compress", "nowhere.yaml")


def test_a_disk_that_becomes_read_only_is_one_sentence(refused, monkeypatch, shapes, tmp_path):
    def read_only(*_args, **_kwargs):
        raise OSError(errno.EROFS, "Read-only file system", "out/training")

    monkeypatch.setattr(importlib.import_module("leandetr.verbs"), "train", read_only)
    sentence = "cannot write out/training: Read-only file system; free some space or name another place"
    refused(sentence, "train", "--data", shapes, *DETR, "--out", tmp_path / "out")


def test_debug_shows_the_traceback(run, tmp_path):
    with pytest.raises(UserError):
        run("--debug", "evaluate", tmp_path / "nowhere", "--data", tmp_path)


@pytest.mark.parametrize(
    ("module", "name"),
    [("leandetr.verbs", "train"), ("leandetr.cli.main", "app"), ("logging", "basicConfig")],  # outside of typer, and before it
)
def test_an_interrupt_says_how_to_go_on(run, monkeypatch, shapes, tmp_path, module, name):
    def interrupt(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module(module), name, interrupt)
    status, _, err = run("train", "--data", shapes, *DETR, "--out", tmp_path / "out")
    assert status == 130
    assert "the same command goes on" in err


@pytest.fixture
def interruptible():
    """Not as a shell's `&` may have started the tests, which ignores interrupts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_that_a_library_takes_for_a_fault_of_its_own_is_one(run, monkeypatch, tmp_path):
    def interrupted(*_args):
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt as interrupt:
            raise UserError("the model cannot be exported") from interrupt

    monkeypatch.setattr("leandetr.data.shapes.write_shapes", interrupted)
    status, _, err = run("data", "shapes", "--out", tmp_path / "out")
    assert (status, err.strip()) == (130, "interrupted; the same command goes on from here")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_termination_says_how_to_go_on_and_leaves_nothing_half_written(run, monkeypatch, tmp_path):
    def terminated(out, *_):
        with writing(out / "a.json"):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("leandetr.data.shapes.write_shapes", terminated)
    before = signal.getsignal(signal.SIGTERM)
    status, _, err = run("data", "shapes", "--out", tmp_path / "out")
    assert status == 143
    assert err.strip() == "terminated; the same command goes on from here"
    assert list((tmp_path / "out").iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_sentence_is_one_line_of_a_length_that_can_be_read(run, tmp_path):
    for model in (tmp_path / "no\nsuch", "x" * 300, "/".join(["x" * 200] * 12)):
        status, _, err = run("evaluate", model, "--data", tmp_path)
        assert status == 2
        assert len(err.strip().splitlines()) == 1
        assert err.startswith("error: ")
        assert len(err) < 1700


def test_trained_evaluated_and_started_again(run, shapes, tmp_path):
    command = ["train", "--data", shapes, *DETR, "--out", tmp_path / "out"]
    status, out, err = run(*command)
    assert (status, out.strip()) == (0, str(tmp_path / "out")), err
    written = (tmp_path / "out" / "config.json").stat().st_mtime_ns
    assert run(*command)[0] == 0
    assert (tmp_path / "out" / "config.json").stat().st_mtime_ns == written
    status, out, err = run("evaluate", tmp_path / "out", "--data", shapes, "--json", tmp_path / "numbers.json")
    assert status == 0, err
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert len(numbers) == 13  # COCO's twelve, and every class's
    assert -1 <= numbers["ap"] <= 1
    assert "AP of disc" in out


def test_the_program_itself_keeps_results_and_messages_apart(tmp_path):
    command = [sys.executable, "-m", "leandetr", "evaluate", tmp_path / "nowhere", "--data", tmp_path]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(r"error: \S+ has no annotations/instances_train.json; .*", done.stderr.strip().splitlines()[-1])
    assert "Traceback" not in done.stderr


def commands():
    def walk(command, path):
        if isinstance(command, typer.core.TyperGroup):
            for name, inner in command.commands.items():
                yield from walk(inner, (*path, name))
        else:
            yield " ".join(path), command

    return dict(walk(typer.main.get_command(cli.app), ()))


@pytest.mark.parametrize("name", commands())
def test_every_command_has_an_example_that_its_options_understand(name):
    command = commands()[name]
    (example,) = re.findall(r"Example: `leandetr ([^`]*)`", command.help)
    words = shlex.split(example)
    assert words[: len(name.split())] == name.split()
    command.make_context(name, words[len(name.split()) :])


def test_a_finished_training_says_so_and_changed_input_is_refused(run, refused, data, tmp_path):
    teacher = ["train", "--data", data, *DETR, "--out", tmp_path / "teacher"]
    student = ["distill", "--data", data, "--teacher", tmp_path / "teacher", "--student", "detr", *DETR[2:]]
    student += ["--out", tmp_path / "student"]
    for command in (teacher, student):
        assert run(*command)[0] == 0
        status, _, err = run(*command)
        assert status == 0
        assert "is finished already, and nothing that it was made from has changed since: annotations of train (" in err
    weights = tmp_path / "teacher" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # as the teacher trained anew in the same folder
    refused("student was made from other input: changed since are teacher .*; remove it, or name another", *student)
    weights.write_bytes(content)
    edit(data / "annotations" / "instances_train.json", lambda coco: coco["annotations"].pop())
    refused("changed since are annotations of train; remove it, or name another folder", *teacher)
    refused("changed since are annotations of train; remove it, or name another folder", *student)
