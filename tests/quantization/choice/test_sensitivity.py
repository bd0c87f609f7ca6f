"""Errors of single layers: they are of that layer alone, and shrink with more bits."""

import pytest
import torch

from leandetr.quantization import Dynamic, Static, WeightOnly, quantize
from leandetr.quantization.choice.sensitivity import bytes_of, measure_layers


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(2, 128, 128, dtype=torch.int64)
    return [{"pixel_values": torch.randn(2, 3, 128, 128, generator=generator), "pixel_mask": mask} for _ in range(2)]


def test_more_bits_err_less_and_a_layer_answers_for_itself_alone(tiny_detector, batches):
    detector = tiny_detector("detr", backbone="test_resnet")
    candidates = {
        "2": WeightOnly(bits=2, calibration_images=0),
        "4": WeightOnly(bits=4, calibration_images=0),
        "8": WeightOnly(),
        "dynamic": Dynamic(),
        "static": Static(calibration_images=4),
    }
    errors, _ = measure_layers(detector, candidates, batches)
    layer = "model.decoder.layers.1.mlp.fc1"
    assert set(errors[layer]) == set(candidates)
    assert errors[layer]["2"] > errors[layer]["4"] > errors[layer]["8"] > 0
    assert set(errors["class_labels_classifier"]) == {"8"}  # as under all the others
    assert all(0 <= error < 0.1 for found in errors.values() for name, error in found.items() if name == "static")

    quantized = quantize(detector, WeightOnly(bits=4, calibration_images=0)).model.get_submodule(layer)
    sums = [0.0, 0.0]

    def compare(_module, inputs, output):
        sums[0] += (quantized(inputs[0]) - output).square().sum().item()
        sums[1] += output.square().sum().item()

    detector.model.get_submodule(layer).register_forward_hook(compare)
    with torch.no_grad():
        for batch in batches:
            detector.model(**batch)
    assert errors[layer]["4"] == pytest.approx(sums[0] / sums[1], rel=1e-3)


def test_bytes_are_those_of_the_tensors(tiny_detector):
    detector = quantize(tiny_detector("detr", backbone="test_resnet"), WeightOnly(bits=4, group_size=32, calibration_images=0))
    layer = detector.model.get_submodule("model.decoder.layers.1.mlp.fc1")  # 64 to 64, groups of 32, bias
    assert bytes_of(layer) == 64 * 64 // 2 + 64 * 2 * 2 + 64 * 4
