"""Every file of examples/ does what it says, in a few steps on the embedded shapes."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import leandetr
from leandetr import Training
from leandetr.data.shapes import write_shapes

ROOT = Path(__file__).resolve().parents[1]
DETECTOR = str(ROOT / "recipes" / "shapes-teacher")
SHORT = {"max_steps": 1, "batch_size": 2, "workers": 0, "augment": "flip"}


def example(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return str(write_shapes(tmp_path_factory.mktemp("examples") / "data", 2, 2, (96, 96)))


@pytest.fixture(scope="module")
def files(data, tmp_path_factory):
    """ONNX files, "float" and "int8", of a detector that is exported in seconds."""
    torch.manual_seed(0)
    folder, small = tmp_path_factory.mktemp("examples"), {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2}
    leandetr.create("detr", leandetr.load(DETECTOR).class_map, (96, 96), "test_resnet", None, small).save(folder / "detr")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("leandetr.quantization.passes.reconstruct.STEPS", 8)
        return example("quantize_and_export")(data, folder / "detr", folder / "files")


@pytest.fixture(scope="module")
def photograph(data):
    return min(Path(data, "val").glob("*.jpg"))


def test_fine_tune(data, tmp_path):
    assert 0 <= example("fine_tune")(data, DETECTOR, str(tmp_path / "out"), Training(**SHORT)) <= 1
    assert leandetr.load(tmp_path / "out").class_map == leandetr.load(DETECTOR).class_map


def test_distillation_loop(data, tmp_path):
    losses = example("distillation_loop")(data, DETECTOR, str(tmp_path / "out"), epochs=2)
    assert torch.tensor(losses).isfinite().all()
    assert (tmp_path / "out" / "config.json").exists()


def test_add_a_method(data, tmp_path, monkeypatch):
    from leandetr.distillation import methods

    monkeypatch.setattr(methods, "METHODS", dict(methods.METHODS))  # other tests count them
    monkeypatch.setattr(methods, "TERMS", dict(methods.TERMS))
    example("add_a_method")(data, DETECTOR, str(tmp_path / "out"), Training(**SHORT))
    log = (tmp_path / "out" / "training" / "log.jsonl").read_text().splitlines()
    assert any(json.loads(line).get("mean-scores/mse", 0) > 0 for line in log)


def test_add_a_family(data, tmp_path, monkeypatch):
    from leandetr.detectors import names
    from leandetr.detectors.families import registry

    monkeypatch.setitem(names.MODELS, "pointed", None)  # taken out again behind it
    monkeypatch.setitem(registry.FAMILIES, "pointed_detr", None)
    made = example("add_a_family")(data, str(tmp_path / "out"), Training(**SHORT))
    assert made.class_map == leandetr.load(DETECTOR).class_map
    assert leandetr.evaluate(tmp_path / "out", data).ap >= 0


@pytest.mark.usefixtures("few_steps")
def test_add_a_scheme(data, tmp_path, monkeypatch):
    from leandetr.quantization import config

    monkeypatch.delitem(config.SCHEMES, "small-backbone", raising=False)
    summary = example("add_a_scheme")(data, DETECTOR, str(tmp_path / "out"))
    config.SCHEMES.pop("small-backbone")
    assert "in float arithmetic, backbone: " in summary
    with torch.no_grad():
        assert leandetr.load(tmp_path / "out")(torch.rand(1, 3, 96, 96)).logits.isfinite().all()


def test_quantize_and_export(files):
    sizes = {name: file.stat().st_size for name, file in files.items()}
    assert sizes["int8"] < 0.5 * sizes["float"]


def test_evaluate_results(data, photograph, tmp_path):
    split = leandetr.data.coco.find_split(data, "val")
    found = leandetr.predict(DETECTOR, [split.images], tmp_path / "found", annotations=split.annotations)
    assert example("evaluate_results")(data, str(found)) == leandetr.evaluate(DETECTOR, data).as_dict()


def test_serve_onnx(files, photograph):
    rows = example("serve_onnx")(str(files["float"]), str(photograph), threshold=0.1)
    expected = leandetr.open_runtime(files["float"]).predict(photograph, threshold=0.1)
    assert len(rows) >= len(expected.scores) > 0  # leandetr's are the best 100
    assert [score for _, score, _ in rows[: len(expected.scores)]] == pytest.approx(expected.scores.tolist(), abs=0.01)


def test_benchmark_two(data, files):
    assert example("benchmark_two")(data, str(files["float"]), str(files["int8"]), repeats=5) > 0


def test_low_bit_training(data, tmp_path):
    made = example("low_bit_training")(data, DETECTOR, str(tmp_path / "out"), Training(**SHORT))
    assert made.config.quantization_config.scheme["bits"] == "4-4-8"


def test_read_predictions(photograph, tmp_path):
    counts = example("read_predictions")(DETECTOR, str(photograph.parent), str(tmp_path / "found"))
    assert counts.keys() <= set(leandetr.load(DETECTOR).class_map.names)
    assert counts.total() > 0


def test_auto_model(photograph):
    names = example("auto_model")(DETECTOR, str(photograph))
    found = leandetr.open_runtime(DETECTOR).predict(Image.open(photograph), threshold=0.3)
    assert names == [leandetr.load(DETECTOR).class_map.names[label] for label in found.labels.tolist()]


@pytest.mark.slow
def test_study(data, tmp_path, monkeypatch):
    results = example("study")(data, DETECTOR, str(tmp_path / "out"), SHORT, seeds=1)
    assert [row["name"] for row in results["rows"]] == ["teacher", "alone", "logits", "fitnet"]
    assert results["left"] == ""
