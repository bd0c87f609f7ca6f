"""A graph of opset 18 as one of 17: the same answers, and a sentence where there is no such graph."""

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from leandetr.deployment.opsets import lower
from leandetr.errors import UserError

X = np.random.default_rng(0).standard_normal((2, 6, 4, 4)).astype(np.float32)


def model(nodes, **constants):
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, X.shape)
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, list("abcd"))
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    made = [helper.make_node(kind, inputs, outputs, **attributes) for kind, inputs, outputs, attributes in nodes]
    graph = helper.make_graph(made, "g", [value], [output], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def answer(proto):
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": X})[0]


RESIZE = {"mode": "linear", "antialias": 0, "keep_aspect_ratio_policy": "stretch"}


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        ([("ReduceMax", ["x", "axes"], ["y"], {"keepdims": 1})], {"axes": np.array([1, -1])}),
        ([("ReduceMean", ["x"], ["y"], {})], {}),
        ([("ReduceSum", ["x", "axes"], ["y"], {})], {"axes": np.array([2])}),
        ([("Split", ["x"], ["y", "rest"], {"axis": 1, "num_outputs": 2})], {}),
        ([("Resize", ["x", "", "scales"], ["y"], RESIZE)], {"scales": np.array([1, 1, 2, 2], np.float32)}),
        ([("Pad", ["x", "widths"], ["y"], {})], {"widths": np.array([0, 0, 1, 0, 0, 0, 0, 2])}),
    ],
)
def test_the_same_answers(nodes, constants):
    before = model(nodes, **constants)
    lowered = onnx_ir.from_proto(before)
    lower(lowered)
    after = onnx_ir.to_proto(lowered)
    onnx.checker.check_model(after, full_check=True)
    assert after.opset_import[0].version == 17
    np.testing.assert_array_equal(answer(after), answer(before))


@pytest.mark.parametrize(
    ("node", "constants"),
    [
        (("Mish", ["x"], ["y"], {}), {}),
        (("Resize", ["x", "", "scales"], ["y"], {"antialias": 1}), {"scales": np.array([1, 1, 2, 2], np.float32)}),
        (("Pad", ["x", "widths", "", "axes"], ["y"], {}), {"widths": np.array([1, 1]), "axes": np.array([2])}),
    ],
)
def test_what_17_does_not_have_is_named(node, constants):
    with pytest.raises(UserError, match=f"{node[0]} as this model uses it exists since opset 18; give --opset 18"):
        lower(onnx_ir.from_proto(model([node], **constants)))
