"""Every quantized layer has a price on both engines, whatever stands at its ends."""

import pytest
import torch

from leandetr.deployment.costs import layer_costs
from leandetr.errors import UserError
from leandetr.quantization import Static, WeightOnly, quantize


@pytest.fixture(scope="module")
def candidates(build):
    detector = build("detr", noise=0.12)
    pixels = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(7))
    batches = [{"pixel_values": pixels, "pixel_mask": torch.ones(2, 96, 96, dtype=torch.int64)}]
    static = quantize(detector, Static(calibration_images=2), batches)
    overrides = {"*fc1": "float", "*fc2": WeightOnly(bits=4, calibration_images=0)}
    mixed = quantize(detector, Static(calibration_images=2, overrides=overrides), batches)
    return {"float": quantize(detector, WeightOnly(overrides={"*": "float"})), "static": static, "mixed": mixed}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.slow)])
def test_every_layer_is_measured_under_every_candidate(candidates, engine):
    if engine == "openvino":
        pytest.importorskip("openvino")
    costs = layer_costs(candidates, torch.randn(1, 3, 96, 96), engine, threads=1)
    assert set(costs) == set(candidates["static"].config.quantization_config.as_asked)
    assert all(set(found) == set(candidates) for found in costs.values())
    assert all(0 <= milliseconds < 1000 for found in costs.values() for milliseconds in found.values())
    assert sum(found["static"] for found in costs.values()) > 0


def test_an_engine_without_operator_times(candidates):
    with pytest.raises(UserError, match="engine"):
        layer_costs(candidates, torch.randn(1, 3, 96, 96), "pytorch")
