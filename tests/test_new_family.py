"""A family of one's own, `examples/add_a_family.py`: one call of `register`, and everything else knows it."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from leandetr.data.batches import collate
from leandetr.data.coco import CocoDataset, class_map_of, find_split
from leandetr.data.shapes import write_shapes
from leandetr.data.transforms import eval_transform
from leandetr.deployment.onnx import export_onnx
from leandetr.deployment.runtimes import open_runtime
from leandetr.detectors.checkpoints.load import load
from leandetr.detectors.create import create
from leandetr.detectors.describe import describe
from leandetr.detectors.families import registry
from leandetr.detectors.names import MODELS
from leandetr.detectors.query_sets import add_distillation_queries
from leandetr.distillation import Distiller, build_terms
from leandetr.evaluation.coco import evaluate
from leandetr.quantization import LowBit, Static, finish, quantize
from leandetr.training.config import Training
from leandetr.training.fit import fit
from leandetr.training.trainer import DetectionTrainer

FILE = Path(__file__).resolve().parents[1] / "examples" / "add_a_family.py"
spec = importlib.util.spec_from_file_location(FILE.stem, FILE)
example = sys.modules[FILE.stem] = importlib.util.module_from_spec(spec)  # torch.export looks modules up by their names
spec.loader.exec_module(example)

SPOT = "model.decoder.spot"
SMALL = {"d_model": 32, "decoder_layers": 2, "decoder_ffn_dim": 32, "num_queries": 8}


@pytest.fixture(scope="module", autouse=True)
def registered():
    example.register()
    yield
    del registry.FAMILIES["pointed_detr"], MODELS["pointed"]


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    folder = write_shapes(tmp_path_factory.mktemp("shapes") / "data", 3, 2, (64, 64))
    return [find_split(folder, name) for name in ("train", "val")]


@pytest.fixture
def build(splits):
    def new(**overrides):
        torch.manual_seed(0)
        return create("pointed", class_map_of(splits[0]), (64, 64), overrides=SMALL | overrides)

    return new


@pytest.fixture
def train(splits):
    return lambda detector: CocoDataset(splits[0], eval_transform(detector.preprocessing), detector.class_map)


@pytest.fixture
def val(splits):
    return lambda detector: CocoDataset(splits[1], eval_transform(detector.preprocessing), detector.class_map)


@pytest.fixture
def batch(build, train):
    images = train(build())
    return collate([images[0], images[1], images[2]])


def answer(detector, batch):
    with torch.no_grad():
        return detector.eval()(batch["pixel_values"])


def test_it_is_built_described_and_starts_as_it_says(build):
    detector = build()
    assert isinstance(detector.family, example.Pointed)
    assert detector.model.model.decoder.spot.bias.tolist() == [0.25, 0.25]
    found = describe("pointed")
    assert (found.what, found.source, found.image_size) == ("DETR that points", "examples/add_a_family.py", (64, 64))
    assert found.multiply_adds > 0


def test_it_trains_slowly_where_it_says_and_is_saved_loaded_and_evaluated(build, train, val, tmp_path):
    detector = build()
    settings = Training(backbone_lr=0.2, epochs=1, max_steps=1, batch_size=2, lr=1e-3, workers=0, precision="float32")
    trainer = DetectionTrainer(detector, train(detector), val(detector), settings, tmp_path / "rates", [])
    rates = {name: trainer.rate_of(name, parameter) for name, parameter in detector.named_parameters()}
    assert {name for name, rate in rates.items() if rate == 0.1} == {f"model.{SPOT}.{part}" for part in ("weight", "bias")}
    best = fit(detector, train(detector), val(detector), settings, tmp_path / "training", "pointed")
    best.save(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert isinstance(again.family, example.Pointed)
    assert evaluate(again.predict, val(again))[1] == evaluate(best.predict, val(best))[1]


@pytest.mark.parametrize("method", ["detrdistill", "hard-label"])
def test_it_learns_from_a_teacher(build, batch, method):
    student, teacher = build(), build(d_model=64, num_queries=11)
    distiller = Distiller(student, teacher, build_terms(method, student, teacher)).train()
    loss = distiller(**batch).loss
    loss.backward()
    assert loss.isfinite()
    assert student.model.model.wishes.weight.grad.any()


def test_its_table_takes_further_queries(build, batch):
    detector = build()
    add_distillation_queries(detector.model, 3)
    assert len(detector.model.model.wishes.weight) == 11
    assert answer(detector, batch).distillation.logits.shape[2] == 3


@pytest.mark.parametrize("config", [Static(calibration_images=3), LowBit(calibration_images=3)], ids=lambda config: config.name)
def test_quantized_its_points_stay_float(build, batch, config):
    detector = build()
    quantized = quantize(detector, config, [batch])
    record = quantized.config.quantization_config
    assert "points" in (record.kept_wide.get(SPOT), record.left_float.get(SPOT))
    assert "model.decoder.layers.0.mlp.fc1" in record.as_asked
    if config.trained:
        quantized.train()(**batch).loss.backward()
        quantized = finish(quantized)
    assert answer(quantized, batch).boxes.isfinite().all()


@pytest.mark.slow
def test_its_file_answers_as_it_does(build, batch, tmp_path):
    detector = build()
    runtime = open_runtime(export_onnx(detector, tmp_path / "pointed.onnx"))
    ours = answer(detector, batch)
    logits, boxes = runtime.run(batch["pixel_values"], None)
    torch.testing.assert_close(logits, ours.logits[-1], atol=1e-4, rtol=0)
    torch.testing.assert_close(boxes, ours.boxes[-1], atol=1e-4, rtol=0)
