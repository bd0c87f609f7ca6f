"""A file in half precision: half the bytes, boxes in float32, the answer of the float detector."""

from collections import Counter

import onnx
import pytest
import torch

from leandetr.deployment.agreement import agreement
from leandetr.deployment.onnx import export_onnx
from leandetr.deployment.pytorch import PyTorchRuntime
from leandetr.deployment.runtimes import OnnxRuntime
from leandetr.errors import UserError
from leandetr.quantization import WeightOnly, quantize


@pytest.mark.slow
@pytest.mark.parametrize("name", ["detr", "rt_detr_v2", "deformable_detr"])
def test_products_are_half_and_boxes_are_not(tiny_detector, tmp_path, name):
    detector = tiny_detector(name, decoder_layers=2)
    with torch.no_grad():
        for parameter in detector.parameters():  # every query gets an answer of its own
            parameter.add_(0.05 * torch.randn_like(parameter))
    file = export_onnx(detector, tmp_path / "half.onnx", half=True)
    model = onnx.load(file)
    onnx.checker.check_model(model, full_check=True)
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input, *graph.output)}
    assert {types[value.name] for value in (*graph.input, *graph.output)} == {onnx.TensorProto.FLOAT}
    found = Counter((node.op_type, types[node.output[0]]) for node in graph.node)
    half = {operator for operator, kind in found if kind == onnx.TensorProto.FLOAT16}
    assert {"Conv", "MatMul", "Relu"} <= half
    assert not half & {"Softmax", "LayerNormalization", "InstanceNormalization", "GridSample", "Log", "Div"}
    assert "BatchNormalization" not in dict(found)
    assert file.stat().st_size < 0.7 * sum(p.nbytes for p in detector.parameters())
    pixels = torch.randn(2, 3, 128, 128)
    ours, theirs = PyTorchRuntime(detector).run(pixels, None), OnnxRuntime(file).run(pixels, None)
    share, typical = agreement(ours, theirs, detector.head, 1e-2)
    assert share > 0.5  # an untrained encoder chooses some other queries
    assert typical < 1e-2


def test_integers_are_not_made_half(tiny_detector, tmp_path):
    with pytest.raises(UserError, match="half precision is of float detectors, this one is quantized; leave out --half"):
        export_onnx(quantize(tiny_detector("detr"), WeightOnly()), tmp_path / "m.onnx", half=True)
