"""In half precision the boxes of every family are as fine as in single precision."""

import copy
import re

import pytest
import torch

from leandetr.detectors.create import create
from leandetr.training.precision import keep_boxes_precise
from leandetr.training.trainer import DetectionTrainer

FAMILIES = ["detr", "conditional_detr", "deformable_detr", "rt_detr_v2", "d_fine", "smca_detr", "adamixer"]
SMALL = {"d_model": 64, "decoder_layers": 3, "num_queries": 12, "decoder_ffn_dim": 64}


def answered(detector, labels):
    """The boxes in training under autocast: those in the right half of the image, of every layer."""
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        output = detector(torch.randn(2, 3, 128, 128), torch.ones(2, 128, 128, dtype=torch.int64), labels(3, 1))
    assert not torch.is_autocast_enabled("cpu")
    return output, output.boxes[output.boxes >= 0.5].float()


@pytest.mark.parametrize("name", FAMILIES)
def test_boxes_are_not_rounded_to_parts_of_256(classes, labels, name):
    torch.manual_seed(0)
    encoder = {} if name == "adamixer" else {"encoder_layers": 1}
    detector = create(name, classes, (128, 128), backbone="test_resnet", overrides=SMALL | encoder).train()
    heads = {key: p for key, p in detector.named_parameters() if "bbox" in key or "box_head" in key}
    for parameter in heads.values():  # the heads of a new detector answer 0
        torch.nn.init.normal_(parameter, std=0.1)
    keep_boxes_precise(detector)
    computed = set()
    for key, layer in detector.named_modules():
        if re.search("bbox|box_head|reference_p|integral", key) and not list(layer.children()):
            layer.register_forward_hook(lambda _layer, _inputs, output: computed.add(output.dtype))
    before = detector.state_dict().keys()
    for module in (detector, copy.deepcopy(detector)):
        output, boxes = answered(module, labels)
        assert {output.boxes.dtype, *computed} == {torch.float32}
        assert (boxes * 256 == (boxes * 256).round()).float().mean() < 0.01
        assert module.state_dict().keys() == before
    output.loss.backward()
    reached = [p.grad is not None for key, p in module.named_parameters() if key in heads]
    assert all(reached)


def test_autocast_is_found_again_after_an_error(tiny_detector):
    detector = tiny_detector("detr")
    keep_boxes_precise(detector)
    head = detector.model.bbox_predictor.layers[0]
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(RuntimeError):
            head(torch.zeros(1, 3))
        assert torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize(("precision", "kept"), [("bfloat16", True), ("float32", False)])
def test_a_training_keeps_them_where_it_is_in_half_precision(prepared, short, tmp_path, precision, kept):
    detector, train, val = prepared()
    DetectionTrainer(detector, train, val, short(precision=precision), tmp_path, [])
    assert bool(detector.model.bbox_predictor.layers[0]._forward_hooks) == kept
