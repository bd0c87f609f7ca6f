"""What is calibrated, evaluated and looked at on a GPU is what a CPU finds."""

import pytest
import torch

from leandetr import verbs
from leandetr.analysis.sensitivity import sensitivity
from leandetr.analysis.similarity import similarity
from leandetr.data.coco import class_map_of, find_split
from leandetr.data.shapes import write_shapes
from leandetr.deployment.runtimes import open_runtime
from leandetr.detectors.create import create
from leandetr.detectors.query_sets import add_distillation_queries
from leandetr.machine import use_device
from leandetr.quantization import SmoothQuant, Static, WeightOnly
from leandetr.verbs.calibration import calibrated

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU (CUDA)")]


@pytest.fixture
def data(tmp_path):
    return write_shapes(tmp_path / "data", 8, 8, (64, 64))


@pytest.fixture
def detector(data, monkeypatch):
    """With weights that give every query an answer of its own; in full precision on a GPU too."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.manual_seed(0)
    small = {"d_model": 32, "decoder_layers": 2, "encoder_layers": 1, "num_queries": 12}
    detector = create("detr", class_map_of(find_split(data, "val")), (96, 96), "test_resnet", overrides=small)
    with torch.no_grad():
        for parameter in detector.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return detector


def on_both(monkeypatch, module, work):
    """What `work` gives on the CPU and on the GPU."""
    found = []
    for device in ("cpu", "cuda"):
        monkeypatch.setattr(module, lambda device=device: torch.device(device))
        found.append(work())
    return found


@pytest.mark.parametrize(
    "scheme",
    [Static(calibration_images=8), SmoothQuant(activations="static", alpha="auto"), WeightOnly(bits=4, calibration_images=8)],
    ids=["static", "smoothquant", "weight-only"],
)
def test_calibration(detector, data, monkeypatch, scheme):
    expected, found = on_both(
        monkeypatch, "leandetr.verbs.calibration.chosen_device", lambda: calibrated(detector, data, scheme).state_dict()
    )
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert found[name].device.type == "cpu"
        assert (found[name].double() - value.double()).abs().mean() <= 0.01 * value.double().abs().mean() + 1e-3, name


def test_evaluation(detector, data, tmp_path):
    detector.save(tmp_path / "model")
    split = find_split(data, "val")
    runtimes = [open_runtime(tmp_path / "model", device=device) for device in ("cpu", use_device("cuda"))]
    (expected, boxes), (found, others) = (verbs.evaluate_runtime(runtime, split) for runtime in runtimes)
    assert found.ap == pytest.approx(expected.ap, abs=1e-3)
    assert len(boxes) == len(others)


def test_analyses(detector, data, tmp_path, monkeypatch):
    add_distillation_queries(detector.model, 5)
    detector.save(tmp_path / "model")
    split, opened = find_split(data, "val"), "leandetr.analysis.snapshots.chosen_device"
    expected, found = on_both(monkeypatch, opened, lambda: similarity([tmp_path / "model"], split, tmp_path / "out"))
    for mine, theirs in zip(expected["models"][0]["layers"], found["models"][0]["layers"], strict=True):
        assert mine == pytest.approx(theirs, abs=1e-3)
    expected, found = on_both(monkeypatch, opened, lambda: sensitivity(tmp_path / "model", split, tmp_path / "out", 8))
    for mine, theirs in zip(expected["layers"], found["layers"], strict=True):
        assert mine["errors"] == pytest.approx(theirs["errors"], rel=0.05, abs=1e-6)
