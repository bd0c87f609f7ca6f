"""What a layer's missing units cost is the loss of a detector that does not have them."""

import json

import pytest
import torch
from PIL import Image

from leandetr.analysis.snapshots import loader_of
from leandetr.data.coco import class_map_of, find_split
from leandetr.data.shapes import write_shapes
from leandetr.detectors.checkpoints.load import load
from leandetr.detectors.create import create
from leandetr.detectors.prunable import prunable_units
from leandetr.errors import UserError
from leandetr.pruning.importance import taylor
from leandetr.pruning.prune import keep_units
from leandetr.pruning.sensitivity import structures, worst_first
from leandetr.quantization import WeightOnly, quantize

SMALL = {
    "d_model": 32,
    "decoder_layers": 2,
    "encoder_layers": 1,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "num_queries": 6,
}


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    return find_split(write_shapes(tmp_path_factory.mktemp("shapes") / "data", 1, 3, (64, 64)), "val")


@pytest.fixture(scope="module")
def saved(split, tmp_path_factory):
    torch.manual_seed(0)
    detector = create("detr", class_map_of(split), (64, 64), "test_resnet", overrides=SMALL).eval()
    with torch.no_grad():
        for parameter in detector.model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("model") / "detr"
    detector.save(folder)
    return folder


def test_the_losses_are_those_of_detectors_without_the_units(saved, split, tmp_path):
    found = structures(saved, split, tmp_path / "out", 3)
    assert found == json.loads((tmp_path / "out/structures.json").read_text())
    detector = load(saved).requires_grad_(False)
    loader = loader_of(detector, split, 3, batch_size=1)

    def loss(of):
        return sum(float(of(b["pixel_values"], b["pixel_mask"], b["labels"]).loss) for b in loader) / 3

    assert found["loss"] == pytest.approx(loss(detector), rel=1e-5)
    assert {layer["structure"] for layer in found["layers"]} == {"ffn", "heads", "channels"}
    units = prunable_units(detector.model)
    importance = taylor(detector, units, loader, lambda: None)
    for layer in found["layers"][::3]:
        share, measured = layer["losses"][1]
        left = importance[layer["name"]].argsort()[int(share * layer["width"]) :].sort().values
        assert measured == pytest.approx(loss(keep_units(detector, {layer["name"]: left})), rel=1e-4)
    order = [layer["losses"][1][1] for layer in worst_first(found)]
    assert order == sorted(order, reverse=True)
    assert sum(layer["multiply_adds"] for layer in found["layers"]) < 1
    with Image.open(tmp_path / "out/structures.png") as picture:
        assert min(picture.size) > 300


def test_a_quantized_detector_is_refused(saved, split, tmp_path):
    quantize(load(saved), WeightOnly()).save(tmp_path / "small")
    with pytest.raises(UserError, match="quantized"):
        structures(tmp_path / "small", split, tmp_path / "out", 2)
