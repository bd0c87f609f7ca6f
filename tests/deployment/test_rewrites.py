"""Rewritings keep the function, take away what they are for, and leave alone what only looks like it."""

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from leandetr.deployment.rewrites import own_zero_points, pad_in_convolutions, select_tokens, spell_out_group_norms

RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((4, 3, 3, 3)).astype(np.float32)
SAME = [0, 0, 0, 1, 0, 0, 1, 2]  # begin and end of (B, C, H, W)


def graph(nodes, initializers, shape=(1, 3, 6, 7)):
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in initializers.items()]
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)
        for name, dims in (("x", shape), ("y", "abcd"[: len(shape)]))
    )
    return helper.make_model(
        helper.make_graph([helper.make_node(*node[:3], **node[3]) for node in nodes], "g", [x], [y], constants),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )


def padded_convolution(grids=0, fill=0.0, widths=SAME, mode="constant", other_grid=False, narrow=False):
    """Pad and Conv with one grid before the padding and one behind it, where asked for; a narrow one has a clamp before it."""
    nodes, tensor = [], "x"

    def grid(tensor, scale):
        nodes.append(("QuantizeLinear", [tensor, scale, "zero"], [f"{tensor}_q"], {}))
        nodes.append(("DequantizeLinear", [f"{tensor}_q", scale, "zero"], [f"{tensor}_d"], {}))
        return f"{tensor}_d"

    if grids == 2:
        tensor = grid(tensor, "other" if other_grid else "scale")
    nodes.append(("Pad", [tensor, "widths", "fill"], ["padded"], {"mode": mode}))
    tensor = "padded"
    if narrow:
        nodes.append(("Clip", [tensor, "low", "high"], ["clamped"], {}))
        tensor = "clamped"
    tensor = grid(tensor, "scale") if grids else tensor
    nodes.append(("Conv", [tensor, "weight"], ["y"], {"strides": [2, 2], "pads": [1, 0, 0, 0]}))
    constants = {"weight": WEIGHT, "widths": np.array(widths), "fill": np.float32(fill)}
    scales = {"scale": np.float32(0.02), "other": np.float32(0.03), "zero": np.uint8(110)}
    scales |= {"low": np.float32(-0.1), "high": np.float32(0.2)}
    return graph(nodes, constants | scales)


def answer(model, x):
    """What the graph says: ONNX Runtime's own rewriting takes liberties, such as leaving out one of two grids."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def rewritten(model, rewrite):
    module = onnx_ir.serde.deserialize_model(model)
    rewrite(module.graph)
    onnx_ir.passes.common.RemoveUnusedNodesPass()(module)
    changed = onnx_ir.serde.serialize_model(module)
    onnx.checker.check_model(changed)
    return changed, [node.op_type for node in changed.graph.node]


@pytest.mark.parametrize(
    ("case", "left"),
    [
        ({}, ["Conv"]),
        ({"grids": 1}, ["QuantizeLinear", "DequantizeLinear", "Conv"]),
        ({"grids": 2}, ["QuantizeLinear", "DequantizeLinear", "Conv"]),
        ({"grids": 1, "narrow": True}, ["Clip", "QuantizeLinear", "DequantizeLinear", "Conv"]),
        (
            {"grids": 2, "narrow": True},
            ["QuantizeLinear", "DequantizeLinear", "Clip", "QuantizeLinear", "DequantizeLinear", "Conv"],
        ),
        ({"grids": 2, "other_grid": True}, ["QuantizeLinear", "DequantizeLinear"] * 2 + ["Conv"]),
    ],
)
def test_padding_becomes_the_convolutions_own(case, left):
    model, x = padded_convolution(**case), RNG.standard_normal((1, 3, 6, 7)).astype(np.float32)
    changed, operators = rewritten(model, pad_in_convolutions)
    assert operators == left
    np.testing.assert_allclose(answer(changed, x), answer(model, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "case", [{"fill": 1.0}, {"mode": "reflect"}, {"widths": [0, 0, 0, -1, 0, 0, 1, 2]}, {"fill": 1.0, "grids": 2}]
)
def test_other_padding_stays(case):
    model = padded_convolution(**case)
    assert rewritten(model, pad_in_convolutions)[1] == [node.op_type for node in model.graph.node]


def test_padding_that_others_read_stays():
    model = padded_convolution()
    model.graph.node.append(helper.make_node("Relu", ["padded"], ["also"]))
    model.graph.output.append(helper.make_tensor_value_info("also", TensorProto.FLOAT, "abcd"))
    assert "Pad" in rewritten(model, pad_in_convolutions)[1]


def test_no_two_weights_share_zero_points():
    nodes = [("DequantizeLinear", [f"w{i}", "scales", "zeros"], [f"d{i}"], {"axis": 0}) for i in range(3)]
    nodes += [("Add", ["d0", "d1"], ["a"], {}), ("Add", ["a", "d2"], ["b"], {}), ("MatMul", ["x", "b"], ["y"], {})]
    weights = {f"w{i}": RNG.integers(-127, 127, (4, 5)).astype(np.int8) for i in range(3)}
    constants = weights | {"scales": np.full(4, 0.1, np.float32), "zeros": np.zeros(4, np.int8)}
    model, x = graph(nodes, constants, (2, 4)), RNG.standard_normal((2, 4)).astype(np.float32)
    changed, _ = rewritten(model, own_zero_points)
    zeros = [node.input[2] for node in changed.graph.node if node.op_type == "DequantizeLinear"]
    assert len(set(zeros)) == 3
    np.testing.assert_array_equal(answer(changed, x), answer(model, x))


def test_group_norms_are_known_to_type_inference_and_compute_as_in_pytorch():
    scale, shift = RNG.standard_normal((2, 6)).astype(np.float32)
    x = RNG.standard_normal((2, 6, 5, 7)).astype(np.float32)
    attributes = {"num_groups": 3, "epsilon": 1e-3}
    nodes = [
        ("GroupNormalization", ["x", "scale", "shift"], ["normed"], attributes),
        ("Reshape", ["normed", "one"], ["y"], {}),
    ]
    model = graph(nodes, {"scale": scale, "shift": shift, "one": np.array([0, 6, 5, 7])}, x.shape)
    rewritten = onnx_ir.from_proto(model)
    spell_out_group_norms(rewritten.graph)
    rewritten = onnx_ir.to_proto(rewritten)
    onnx.checker.check_model(rewritten, full_check=True)
    assert "GroupNormalization" not in {node.op_type for node in rewritten.graph.node}
    expected = torch.nn.functional.group_norm(torch.tensor(x), 3, torch.tensor(scale), torch.tensor(shift), 1e-3)
    np.testing.assert_allclose(answer(rewritten, x), expected, atol=1e-5)


@pytest.mark.parametrize(("chosen", "left"), [([1, 1, 1], []), ([1, 0, 1], ["Where"])])
def test_tokens_are_chosen_where_some_are_not(chosen, left):
    tokens, x = np.array(chosen, np.float32).reshape(1, 3, 1), RNG.standard_normal((2, 3, 4)).astype(np.float32)
    nodes = [("Mul", ["tokens", "x"], ["m"], {}), ("Relu", ["m"], ["y"], {})]
    changed, operators = rewritten(graph(nodes, {"tokens": tokens}, x.shape), select_tokens)
    assert operators == [*left, "Relu"]
    np.testing.assert_array_equal(answer(changed, x), np.maximum(x * tokens, 0))
