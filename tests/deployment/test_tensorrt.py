"""A file for TensorRT: signed integers around 0 by its rules for explicit quantization, and the quantized detector's answer.

The rules are those of NVIDIA's "Working with Quantized Types" and of its parser. No TensorRT runs here.
"""

from functools import cache

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from leandetr.deployment.agreement import agreement
from leandetr.deployment.onnx import export_onnx
from leandetr.deployment.pytorch import PyTorchRuntime
from leandetr.deployment.runtimes import OnnxRuntime
from leandetr.errors import UserError
from leandetr.quantization.config import Dynamic, Static
from leandetr.quantization.quantize import quantize

PRODUCTS = ("Conv", "MatMul", "Gemm")
#: quantized without training, PyTorch itself answers otherwise here where pixels move by a millionth
UNSTEADY = ("adamixer", "rt_detr_v2")


def quantized(detector, scheme):
    height, width = detector.preprocessing.size
    pixels = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(7))
    return quantize(detector, scheme, [{"pixel_values": pixels, "pixel_mask": torch.ones(2, height, width, dtype=torch.int64)}])


class Graph:
    """An ONNX graph that is asked where its values come from."""

    def __init__(self, graph):
        self.nodes, self.made = graph.node, {output: node for node in graph.node for output in node.output}
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.array = cache(lambda name: numpy_helper.to_array(self.constants[name]))

    def before(self, name):
        """The node that a value comes from, changes of its layout left out; None for a constant or an input."""
        node = self.made.get(name)
        return self.before(node.input[0]) if node is not None and node.op_type in ("Transpose", "Reshape") else node


def obeys(graph):
    """Assert TensorRT's rules; returns how many products compute in integers."""
    pairs = [node for node in graph.nodes if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    for node in pairs:
        scale, zero = graph.array(node.input[1]), graph.array(node.input[2])
        assert zero.dtype == np.int8
        assert not zero.any()
        assert scale.dtype == np.float32
        if node.op_type == "DequantizeLinear":
            assert graph.made[node.input[0]].op_type == "QuantizeLinear"  # no stored integers, no int32 biases
            assert graph.made[node.input[0]].input[1] == node.input[1]
        source = node.input[0] if node.op_type == "QuantizeLinear" else graph.made[node.input[0]].input[0]
        assert scale.ndim == (source in graph.constants)  # one an output channel of weights, or one a tensor
    kinds = {tensor.data_type for tensor in graph.constants.values()}
    assert not kinds & {TensorProto.UINT8, TensorProto.INT4}
    products = [node for node in graph.nodes if node.op_type in PRODUCTS]
    on_grids = [[_op(graph.before(value)) == "DequantizeLinear" for value in node.input[:2]] for node in products]
    assert all(both[0] == both[1] for both in on_grids)
    shortcuts = [node for node in graph.nodes if node.op_type == "Add"]
    for value in (value for node in shortcuts for value in node.input):
        dequantize = graph.before(value)
        if (
            _op(dequantize) == "DequantizeLinear"
        ):  # what is added to a convolution's sum comes from a ReLU, never at once from one
            quantize = graph.made[dequantize.input[0]]
            assert _op(graph.before(quantize.input[0])) not in PRODUCTS
    return sum(map(all, on_grids))


def _op(node):
    return None if node is None else node.op_type


@pytest.mark.parametrize(
    "name",
    ["detr", *(pytest.param(name, marks=pytest.mark.slow) for name in ("deformable_detr", "rt_detr_v2", "adamixer"))],
)
def test_the_file_obeys_the_rules_and_answers_as_pytorch_does(tiny_detector, tmp_path, name):
    detector = tiny_detector(name, decoder_layers=2)
    with torch.no_grad():  # every query gets an answer of its own
        for parameter in detector.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    detector = quantized(detector, Static(target="tensorrt", calibration_images=2))
    path = export_onnx(detector, tmp_path / "model.onnx", tensorrt=True, opset=17)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert (model.opset_import[0].domain, model.opset_import[0].version, model.ir_version) == ("", 17, 8)
    assert obeys(Graph(model.graph)) >= 20
    if name in UNSTEADY:
        return
    pixels = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    ours, theirs = PyTorchRuntime(detector).run(pixels, None), OnnxRuntime(path).run(pixels, None)
    share, typical = agreement(ours, theirs, detector.head, 2e-2)
    assert share > 0.5  # of untrained weights, where an engine's rounding chooses some other queries
    assert typical < 1e-2


@pytest.mark.parametrize("scheme", [Static(calibration_images=2), Dynamic()])
def test_other_grids_are_refused_with_the_mend(build, tmp_path, scheme):
    with pytest.raises(UserError, match=r"m\.onnx: TensorRT .*--scheme static --set target=tensorrt"):
        export_onnx(quantized(build("detr"), scheme), tmp_path / "m.onnx", tensorrt=True)
    with pytest.raises(UserError, match="activation_bits is 4; give 8 with the target tensorrt"):
        Static(target="tensorrt", activation_bits=4)
