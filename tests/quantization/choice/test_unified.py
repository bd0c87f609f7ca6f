"""The rule of `unified`: the cheapest candidate within the tolerance, and the smallest tolerance that meets the size."""

import pytest
import torch

from leandetr.detectors.checkpoints.load import load
from leandetr.errors import UserError
from leandetr.quantization import Unified, quantize
from leandetr.quantization.choice.sensitivity import bytes_of
from leandetr.quantization.choice.unified import choose

ERRORS = {"a": {"static": 0.1, "weight-only": 0.001, "4 bits": 0.05}, "b": {"weight-only": 0.02, "4 bits": 0.3}}
SIZES = {"a": {"static": 110, "weight-only": 100, "4 bits": 60}, "b": {"weight-only": 100, "4 bits": 60}}


@pytest.mark.parametrize(
    ("tolerance", "prefer", "a", "b"),
    [
        (1e-4, "speed", None, None),
        (0.01, "speed", "weight-only", None),
        (0.06, "speed", "weight-only", "weight-only"),
        (0.06, "size", "4 bits", "weight-only"),
        (0.2, "speed", "static", "weight-only"),
        (0.5, "size", "4 bits", "4 bits"),
    ],
)
def test_the_cheapest_within_the_tolerance_is_chosen(tolerance, prefer, a, b):
    assert choose(ERRORS, SIZES, tolerance, prefer) == {"a": a, "b": b}


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(2, 128, 128, dtype=torch.int64)
    return [{"pixel_values": torch.randn(2, 3, 128, 128, generator=generator), "pixel_mask": mask} for _ in range(2)]


@pytest.mark.slow
def test_the_size_is_met_and_the_model_saved(tiny_detector, batches, tmp_path):
    detector = tiny_detector("detr", backbone="test_resnet")
    quantized = quantize(detector, Unified(size=0.4, calibration_images=4), batches)
    assert 0.2 < bytes_of(quantized.model) / bytes_of(detector.model) <= 0.4
    assert len({plan["input"] for plan in quantized.config.quantization_config.layers.values()}) > 1
    quantized.save(tmp_path / "quantized")
    images = batches[0]["pixel_values"]
    with torch.no_grad():
        torch.testing.assert_close(load(tmp_path / "quantized")(images).boxes, quantized(images).boxes, rtol=0, atol=0)
    with pytest.raises(UserError, match="the smallest is"):
        quantize(detector, Unified(size=0.01, calibration_images=4), batches)


@pytest.mark.slow
def test_layers_of_the_overrides_count_in_the_size(tiny_detector, batches):
    detector = tiny_detector("detr", backbone="test_resnet")
    config = Unified(size=0.5, calibration_images=4, overrides={"*mlp.fc1": "float"})
    quantized = quantize(detector, config, batches)
    layers = quantized.config.quantization_config.layers
    assert layers
    assert not any(name.endswith("mlp.fc1") for name in layers)
    assert bytes_of(quantized.model) / bytes_of(detector.model) <= 0.5
    with pytest.raises(UserError, match="the smallest is"):
        quantize(detector, Unified(size=0.4, calibration_images=4, overrides={"*backbone*": "float"}), batches)
