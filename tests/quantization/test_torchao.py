"""torchao's tensors hold the same integers and answer the same."""

import sys

import pytest
import torch
from torch import nn

from leandetr.errors import UserError
from leandetr.quantization import Dynamic, SmoothQuant, Static, WeightOnly, quantize, to_torchao


@pytest.fixture
def batches():
    images = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    return [{"pixel_values": images, "pixel_mask": torch.ones(2, 128, 128, dtype=torch.int64)}]


@pytest.mark.parametrize(
    ("scheme", "tolerance"),
    [
        (WeightOnly(), 1e-4),
        (WeightOnly(bits=4, group_size=32, calibration_images=0), 1e-4),
        (SmoothQuant(calibration_images=2), 1e-4),
        (SmoothQuant(activations="dynamic", calibration_images=2), 1e-2),
        (Dynamic(), 1e-2),
        (Dynamic(per_row=True), 1e-2),
    ],
    ids=["8 bits", "4 bits", "smoothed", "smoothed dynamic", "dynamic", "dynamic per row"],
)
def test_outputs_are_those_of_the_quantized_detector(tiny_detector, batches, scheme, tolerance):
    pytest.importorskip("torchao")
    quantized = quantize(tiny_detector("detr", backbone="test_resnet"), scheme, batches)
    converted = to_torchao(quantized)
    weights = [module.weight for module in converted.model.modules() if isinstance(module, nn.Linear)]
    assert any("Int" in type(weight.data).__name__ for weight in weights)
    images = batches[0]["pixel_values"]
    with torch.no_grad():
        ours, theirs = quantized(images), converted(images)
    torch.testing.assert_close(theirs.boxes, ours.boxes, rtol=0, atol=tolerance)
    torch.testing.assert_close(theirs.logits.sigmoid(), ours.logits.sigmoid(), rtol=0, atol=tolerance)


def test_faults_are_one_sentence(tiny_detector, batches, monkeypatch):
    detector = tiny_detector("detr", backbone="test_resnet")
    with pytest.raises(UserError, match="not quantized"):
        to_torchao(detector)
    with pytest.raises(UserError, match="calibrated grid"):
        to_torchao(quantize(detector, Static(calibration_images=2), batches))
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(UserError, match=r"leandetr\[torchao\]"):
        to_torchao(detector)
