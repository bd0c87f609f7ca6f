"""The picture's numbers are those of `measure_layers`; layers and candidates are all there."""

import json

import pytest
from PIL import Image

from leandetr.analysis.sensitivity import sensitivity
from leandetr.detectors.checkpoints.load import load
from leandetr.errors import UserError
from leandetr.quantization import WeightOnly, quantize


def test_every_layer_and_candidate_is_in_the_json(saved, split, tmp_path):
    found = sensitivity(saved(), split, tmp_path / "out", 2)
    assert found == json.loads((tmp_path / "out/sensitivity.json").read_text())
    errors = {layer["name"]: layer["errors"] for layer in found["layers"]}
    eight, four, static = found["candidates"]
    both = [layer for layer in errors.values() if eight in layer and four in layer]
    assert len(both) > 10
    assert all(layer[eight] <= layer[four] for layer in both)
    assert sum(layer[eight] for layer in errors.values() if static in layer) < sum(
        layer[static] for layer in errors.values() if static in layer
    )
    with Image.open(tmp_path / "out/sensitivity.png") as picture:
        assert min(picture.size) > 300


def test_a_quantized_detector_is_refused(saved, split, tmp_path):
    folder = saved()
    quantize(load(folder), WeightOnly()).save(tmp_path / "small")
    with pytest.raises(UserError, match="quantized already"):
        sensitivity(tmp_path / "small", split, tmp_path / "out", 2)
