"""What `load` promises: safetensors only, and for every fault one sentence that names the file."""

import json
from pathlib import Path

import pytest
import torch

from leandetr.detectors.checkpoints.load import load
from leandetr.detectors.create import create
from leandetr.errors import UserError
from leandetr.structures import ClassMap

SMALL = {"d_model": 32, "decoder_layers": 2, "encoder_layers": 1, "num_queries": 4, "decoder_ffn_dim": 32}


@pytest.fixture
def saved(classes, tmp_path):
    folder = tmp_path / "detector"
    create("detr", classes, (64, 64), backbone="test_resnet", overrides=SMALL).save(folder)
    return folder


def edit_config(folder, **changes):
    values = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def truncate(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def pickle_instead(folder):
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "model.ckpt")


def code_instead(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Path("there")}, folder / "pytorch_model.bin")  # an object, not a tensor


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (truncate, "model.safetensors is truncated"),
        (pickle_instead, "only the pickle model.ckpt, which can run code"),
        (code_instead, "its weights cannot be read"),
        (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors"),
        (lambda f: (f / "config.json").unlink(), "has no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "config.json is not JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "config.json has no model_type"),
        (lambda f: edit_config(f, model_type="conditional_det"), "config.json: .*did you mean 'conditional_detr'"),
        (lambda f: edit_config(f, model_type=None), "config.json has no model_type"),
        (
            lambda f: edit_config(f, model_type="conditional_detr"),
            r"\d+ weights do not fit its config.json \(.*another architecture",
        ),
        (
            lambda f: edit_config(f, decoder_ffn_dim=16),
            r"6 weights do not fit its config.json \((\S+, ){2}\S+\); the checkpoint",
        ),
        (lambda f: edit_config(f, decoder_layers=3), r"weights do not fit .*model.decoder.layers.2"),
        (lambda f: edit_config(f, decoder_layers=1), r"weights do not fit .*model.decoder.layers.1"),
        (lambda f: edit_config(f, decoder_layers=10**6), "decoder_layers says 1000000, and the weights are [0-9]+ tensors"),
        (lambda f: edit_config(f, decoder_ffn_dim=10**8), "decoder_ffn_dim says 100000000, by which .* parameters"),
        (lambda f: (f / "preprocessor_config.json").write_text("{"), "has no readable preprocessor_config.json"),
    ],
)
def test_a_spoiled_folder_is_refused_in_one_sentence(saved, spoil, sentence):
    spoil(saved)
    with pytest.raises(UserError, match=sentence) as caught:
        load(saved)
    assert str(saved) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("/nowhere/at/all", "/nowhere/at/all: no such folder"),
        ("nowhere", "nowhere: no such folder"),
        ("runs/model.pth", "runs/model.pth is a pickle"),
        ("{tmp}/missing", "missing: no such folder"),
        ("{tmp}/model.onnx", "model.onnx is a file, not a saved detector; give the folder"),
    ],
)
def test_what_is_no_folder_is_refused(tmp_path, source, sentence):
    (tmp_path / "model.onnx").write_bytes(b"graph")
    with pytest.raises(UserError, match=sentence):
        load(source.format(tmp=tmp_path))


def test_a_name_beside_existing_folders_is_a_folder_not_a_hub_id(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="runs/teachr: no such folder"):
        load("runs/teachr")


def test_a_hub_that_cannot_be_reached_is_one_sentence(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="no-such-owner/no-such-model: no detector there") as caught:
        load("no-such-owner/no-such-model")
    assert "\n" not in str(caught.value)


def test_classes_of_a_checkpoint_from_elsewhere_are_numbered_from_zero(saved):
    edit_config(saved, dataset_category_ids=None)
    assert load(saved).class_map.dataset_ids == (0, 1, 2, 3, 4)


def test_half_precision_files_are_computed_in_single(saved, classes):
    found = load(saved)
    found.model.half().save_pretrained(saved)
    loaded = load(saved)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert not loaded.training


def test_weights_of_older_versions_are_read_without_running_what_is_in_them(saved):
    detector = load(saved)
    torch.save(detector.model.state_dict(), saved / "pytorch_model.bin")
    (saved / "model.safetensors").unlink()
    state, read = detector.model.state_dict(), load(saved).model.state_dict()
    assert all(torch.equal(state[key], read[key]) for key in state)


def test_the_file_of_weights_in_a_folder_stands_for_the_folder(saved):
    expected = load(saved).model.state_dict()
    for name in ("model.safetensors", "pytorch_model.bin"):
        if name == "pytorch_model.bin":
            (saved / "model.safetensors").unlink()
            torch.save(expected, saved / name)
        found = load(saved / name).model.state_dict()
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_without_a_preprocessors_file_images_are_prepared_as_the_familys_are(saved, caplog):
    (saved / "preprocessor_config.json").unlink()
    found = load(saved).preprocessing
    assert (found.shortest_edge, found.longest_edge, found.size) == (800, 1333, None)
    assert "has no preprocessor_config.json; images are prepared as its family's are" in caplog.text


@pytest.mark.parametrize(("name", "size"), [("rt_detr_v2", (640, 640)), ("lw_detr", (128, 128)), ("swin_detr", (224, 224))])
def test_sizes_of_families_that_squeeze_images(tiny_detector, name, size):
    detector = tiny_detector(name)
    assert detector.family.own_preprocessing(detector.config).size == size


def test_classes_without_names_are_hinted_at_once(tiny_detector, tmp_path, caplog):
    detector = tiny_detector("detr")
    detector.save(tmp_path)
    load(tmp_path)
    assert "LABEL_0" not in caplog.text
    detector.class_map = ClassMap(tuple(f"LABEL_{index}" for index in range(5)), tuple(range(5)))
    detector.save(tmp_path)
    for _ in range(2):
        load(tmp_path)
    assert (
        caplog.text.count("calls its classes LABEL_0, LABEL_1, ...: write their names under id2label in its config.json") == 1
    )
