"""Clamps that moved onto bytes give the same integers, and convolutions without a grid behind them the same sums."""

import numpy as np
import onnx_ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_ir.passes.common import RemoveUnusedNodesPass

from leandetr.deployment.integer_kernels import (
    add_in_products,
    answers_on_a_grid,
    clamp_bytes,
    multiply_matrices,
    repeat_bytes,
)
from leandetr.deployment.unpacking import unpack_onnx

RNG = np.random.default_rng(0)
SHAPE = (2, 6, 5, 7)


def graph(nodes, initializers, output=TensorProto.FLOAT):
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in initializers.items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)
    y = helper.make_tensor_value_info("y", output, "abcd")
    nodes = [helper.make_node(*node[:3], **node[3]) for node in nodes]
    made = helper.make_graph(nodes, "g", [x], [y], constants)
    return onnx_ir.from_proto(helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))


def run(model, x, optimised=True):
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")  # as `OnnxRuntime`
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    file = onnx_ir.to_proto(model).SerializeToString()
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def kinds(model):
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("zero", [0, 1, 3])
@pytest.mark.parametrize("clamps", [["grid"], ["relu", "grid"], ["six", "grid"], ["six"], ["relu"], ["open"]])
def test_clamped_bytes_are_the_integers_of_clamped_floats(bits, zero, clamps):
    """Ties included: every multiple of half a step."""
    scale, top = np.float32(0.3), 2**bits - 1
    ends = {"six": (0.0, 6.0), "grid": (scale * np.float32(-zero), scale * np.float32(top - zero)), "open": (None, 0.7)}
    nodes, values, tensor = [], {"scale": scale, "zero": np.uint8(zero)}, "x"
    for index, clamp in enumerate(clamps):
        inputs = [tensor]
        if clamp != "relu":
            for end, value in zip(("low", "high"), ends[clamp], strict=True):
                inputs.append("" if value is None else f"{clamp}_{end}")
                values |= {} if value is None else {f"{clamp}_{end}": np.float32(value)}
        tensor = f"clamped_{index}"
        nodes.append(("Relu" if clamp == "relu" else "Clip", inputs, [tensor], {}))
    nodes += [("QuantizeLinear", [tensor, "scale", "zero"], ["q"], {}), ("Identity", ["q"], ["y"], {})]
    model = graph(nodes, values, TensorProto.UINT8)
    x = np.resize(np.arange(-80, 80) * np.float32(0.15), SHAPE).astype(np.float32)
    expected = run(model, x, optimised=False)
    assert clamp_bytes(model.graph) == 1
    assert kinds(model)[0] == "QuantizeLinear"
    assert kinds(model).count("Clip") <= 1
    np.testing.assert_array_equal(run(model, x), expected)


def test_a_clamp_that_others_read_stays():
    values = {"scale": np.float32(0.3), "zero": np.uint8(0)}
    model = graph(
        [
            ("Relu", ["x"], ["r"], {}),
            ("QuantizeLinear", ["r", "scale", "zero"], ["q"], {}),
            ("DequantizeLinear", ["q", "scale", "zero"], ["d"], {}),
            ("Add", ["d", "r"], ["y"], {}),
        ],
        values,
    )
    assert clamp_bytes(model.graph) == 0
    assert kinds(model)[0] == "Relu"


def convolution(kernel=1, follows=(), bias=True, clamp=False, **attributes):
    """Grid, convolution of integers, and what follows it."""
    values = {
        "scale": np.float32(0.1),
        "zero": np.uint8(5),
        "low": np.float32(-0.5),
        "high": np.float32(1.0),
        "weight": RNG.integers(-8, 8, (4, 6 // attributes.get("group", 1), kernel, kernel)).astype(np.int8),
        "steps": RNG.uniform(0.01, 0.1, 4).astype(np.float32),
        "zeros": np.zeros(4, np.int8),
        "bias": RNG.integers(-100, 100, 4).astype(np.int32),
        "bias_steps": RNG.uniform(0.001, 0.01, 4).astype(np.float32),
        "bias_zeros": np.zeros(4, np.int32),
    }
    nodes = [("Clip", ["x", "low", "high"], ["c"], {})] if clamp else []
    nodes += [
        ("QuantizeLinear", ["c" if clamp else "x", "scale", "zero"], ["q"], {}),
        ("DequantizeLinear", ["q", "scale", "zero"], ["d"], {}),
        ("DequantizeLinear", ["weight", "steps", "zeros"], ["w"], {"axis": 0}),
        ("DequantizeLinear", ["bias", "bias_steps", "bias_zeros"], ["b"], {"axis": 0}),
        ("Conv", ["d", "w", "b"] if bias else ["d", "w"], ["conv"], attributes),
    ]
    tensor = "conv"
    for index, kind in enumerate(follows or ("Identity",)):
        after = "y" if index == len(follows or "i") - 1 else f"after_{index}"
        grid = ["scale", "zero"] if "Linear" in kind else ["conv"] if kind == "Add" else []
        nodes.append((kind, [tensor, *grid], [after], {}))
        tensor = after
    return graph(nodes, values)


@pytest.mark.parametrize("bias", [True, False])
def test_a_pointwise_convolution_that_answers_in_float_becomes_a_product_of_matrices(bias):
    model, x = convolution(bias=bias), RNG.standard_normal(SHAPE).astype(np.float32)
    expected = run(model, x, optimised=False)
    assert multiply_matrices(model.graph) == 1
    assert "MatMul" in kinds(model)
    assert "Conv" not in kinds(model)
    np.testing.assert_allclose(run(model, x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kernel", "follows", "attributes"),
    [
        (1, ("QuantizeLinear", "DequantizeLinear"), {}),
        (1, ("Relu", "QuantizeLinear", "DequantizeLinear"), {}),
        (3, (), {}),
        (1, (), {"strides": [2, 2]}),
        (1, (), {"pads": [1, 1, 1, 1]}),
        (1, (), {"group": 2}),
    ],
)
def test_other_convolutions_stay(kernel, follows, attributes):
    model = convolution(kernel, follows, **attributes)
    assert multiply_matrices(model.graph) == 0
    assert "Conv" in kinds(model)


def test_weights_are_unpacked_where_the_convolution_has_no_grid_behind_it():
    x = RNG.standard_normal(SHAPE).astype(np.float32)
    for follows, unpacked in (((), 2), (("Relu", "QuantizeLinear", "DequantizeLinear"), 0), (("Relu", "Add"), 2)):
        model = convolution(3, follows)
        conv = next(node for node in model.graph if node.op_type == "Conv")
        assert answers_on_a_grid(conv) == (unpacked == 0)
        expected = run(model, x, optimised=False)
        assert unpack_onnx(model) == unpacked
        np.testing.assert_allclose(run(model, x), expected, rtol=1e-4, atol=1e-4)


def linear(turned=True, each=True, integer_bias=True, zero=0, other=None):
    """x on a grid (..., 7) times integer weights, plus a bias (5,); other: "second reader" or "activation" in place of one."""
    steps = np.linspace(0.01, 0.03, 5).astype(np.float32) if each else np.float32(0.02)
    weight = RNG.integers(-127, 128, (5, 7) if turned else (7, 5)).astype(np.int8)
    values = {
        "scale": np.float32(0.02),
        "zero": np.uint8(120),
        "weight": weight,
        "steps": steps,
        "zeros": np.full(np.shape(steps), zero, np.int8),
        "integers": RNG.integers(-5000, 5000, 5).astype(np.int32),
        "unit": np.asarray(steps * np.float32(0.02)),
        "floats": RNG.standard_normal(5).astype(np.float32),
    }
    axis = {"axis": 0 if turned else 1} if each else {}
    nodes = [
        ("QuantizeLinear", ["x", "scale", "zero"], ["q"], {}),
        ("DequantizeLinear", ["q", "scale", "zero"], ["d"], {}),
        ("DequantizeLinear", ["weight", "steps", "zeros"], ["w"], axis),
        ("DequantizeLinear", ["integers", "unit"], ["b"], {"axis": 0} if each else {}),
        ("Transpose", ["w"], ["t"], {"perm": [1, 0]}),
        ("MatMul", ["x" if other == "activation in float" else "d", "t" if turned else "w"], ["product"], {}),
        ("Relu", ["product"], ["positive"], {}),
    ]
    addend = "positive" if other == "second reader" else "b" if integer_bias else "floats"
    nodes.append(("Add", ["product", addend] if integer_bias else [addend, "product"], ["y"], {}))
    read = {name for _, inputs, _, _ in nodes for name in inputs} | {"y"}
    return graph([node for node in nodes if node[2][0] in read], {key: value for key, value in values.items() if key in read})


@pytest.mark.parametrize("turned", [True, False])
@pytest.mark.parametrize("each", [True, False])
@pytest.mark.parametrize("integer_bias", [True, False])
def test_a_product_of_integers_adds_its_bias(turned, each, integer_bias):
    model, x = linear(turned, each, integer_bias), RNG.standard_normal(SHAPE).astype(np.float32)
    expected = run(model, x, optimised=False)
    assert add_in_products(model.graph) == 1
    RemoveUnusedNodesPass()(model)
    assert kinds(model)[-1] == "MatMulIntegerToFloat"
    assert "Add" not in kinds(model)
    assert unpack_onnx(model) == 0
    np.testing.assert_allclose(run(model, x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("changes", [{"zero": 3}, {"other": "second reader"}, {"other": "activation in float"}])
def test_other_products_stay(changes):
    model = linear(**changes)
    assert add_in_products(model.graph) == 0
    assert "MatMul" in kinds(model)


def enlarged(mode="nearest", on_a_grid=True):
    """A grid made twice as large and joined with another grid, as in a feature pyramid, with a grid behind it or none."""
    values = {"low": np.float32(0.02), "high": np.float32(0.03), "zero": np.uint8(120), "twice": np.float32([1, 1, 2, 2])}
    nodes = [
        ("QuantizeLinear", ["x", "low", "zero"], ["q"], {}),
        ("DequantizeLinear", ["q", "low", "zero"], ["d"], {}),
        (
            "Resize",
            ["d", "", "twice"],
            ["large"],
            {"mode": mode, "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"},
        ),
        ("Concat", ["large", "large"], ["both"], {"axis": 1}),
    ]
    if on_a_grid:
        nodes += [
            ("QuantizeLinear", ["both", "high", "zero"], ["qq"], {}),
            ("DequantizeLinear", ["qq", "high", "zero"], ["y"], {}),
        ]
    else:
        nodes.append(("Relu", ["both"], ["y"], {}))
    return graph(nodes, values)


def test_repeated_pixels_are_repeated_bytes():
    model, x = enlarged(), RNG.standard_normal(SHAPE).astype(np.float32)
    expected = run(model, x, optimised=False)
    assert repeat_bytes(model.graph) == 1
    assert [kind for kind in kinds(model) if kind != "DequantizeLinear"] == [
        "QuantizeLinear",
        "Resize",
        "Concat",
        "QuantizeLinear",
    ]
    np.testing.assert_array_equal(run(model, x, optimised=False), expected)
    np.testing.assert_allclose(run(model, x), expected, atol=0.031)  # it joins bytes by way of tables, a step apart at most


@pytest.mark.parametrize("case", [{"mode": "linear"}, {"on_a_grid": False}])
def test_other_enlargements_stay(case):
    assert repeat_bytes(enlarged(**case).graph) == 0
