"""Quantized layers on real engines: the exported graph holds the integers, and computes what PyTorch computes."""

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
from onnx_ir.passes import common
from torch import Tensor, nn

from leandetr.deployment.openvino import read_onnx
from leandetr.deployment.unpacking import unpack_onnx, unpack_openvino
from leandetr.machine import adds_bytes_exactly
from leandetr.quantization.grids import grid_of
from leandetr.quantization.layers.modules import GriddedActivation, LayerPlan, quantized_layer
from leandetr.quantization.layers.operators import dynamic_linear, onnx_translations, store_integers
from leandetr.quantization.layers.trainable import TrainableLayer, trainable_layer

EXACT_BYTES = pytest.mark.skipif(not adds_bytes_exactly(), reason="without VNNI, sums of 8-bit products overflow on OpenVINO")
BITS = {"input_bits": 8, "output_bits": 8}
PLANS = {
    "weight-only": (LayerPlan(), {"DequantizeLinear"}),
    "dynamic": (LayerPlan(input="dynamic"), {"DynamicQuantizeLinear", "MatMulInteger"}),
    "dynamic, per row": (LayerPlan(input="dynamic-rows"), {"ReduceMax", "MatMulInteger"}),
    "static": (LayerPlan(input="grid", **BITS), {"QuantizeLinear", "DequantizeLinear"}),
    "static, 4 bits": (
        LayerPlan(weight_bits=4, input="grid", input_bits=4),
        {"Clip", "QuantizeLinear", "DequantizeLinear"},
    ),
    "input given": (LayerPlan(input="given", **BITS), {"QuantizeLinear", "DequantizeLinear"}),
}
LAYERS = {
    "linear": (lambda: nn.Linear(48, 32), (2, 7, 48)),
    "linear without bias": (lambda: nn.Linear(48, 32, bias=False), (5, 48)),
    "convolution": (lambda: nn.Conv2d(8, 16, 3, stride=2, padding=1), (2, 8, 9, 12)),
    "depthwise": (lambda: nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8, bias=False), (1, 8, 9, 12)),
}


def built(layer: nn.Module, plan: LayerPlan, reach: float = 2.0) -> nn.Module:
    """The layer with grids for inputs in [-reach, 1.5 reach] and for its outputs on them."""
    quantized = quantized_layer(layer, plan)
    for grid in (quantized.input, quantized.output):
        if grid is not None:
            scale, zero_point = grid_of(-reach, 1.5 * reach, grid.bits)
            grid.scale.copy_(scale)
            grid.zero_point.copy_(zero_point)
    quantized.fill(layer)
    return quantized.eval()


def exported(module: nn.Module, x: Tensor, path) -> onnx.ModelProto:
    program = torch.onnx.export(
        module,
        (x,),
        dynamo=True,
        opset_version=21,
        custom_translation_table=onnx_translations(),
        input_names=["x"],
        optimize=False,
        verbose=False,
    )
    common.InlinePass()(program.model)
    store_integers(program.model.graph)
    onnx_ir.save(program.model, path)
    return onnx.load(path)


def onnx_runtime(path, x: Tensor, fuse: bool = False) -> Tensor:
    """Without its fusions ONNX Runtime executes the graph as written; with them it may do so in other precisions."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")  # as `OnnxRuntime`
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_quant_qdq", "0" if fuse else "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


@pytest.mark.parametrize(
    ("scheme", "kind"),
    [
        ("weight-only", "linear"),
        ("weight-only", "convolution"),
        ("dynamic", "linear"),
        ("dynamic", "linear without bias"),
        ("dynamic, per row", "linear"),
        ("dynamic, per row", "linear without bias"),
        ("static", "linear"),
        ("static", "convolution"),
        ("static", "depthwise"),
        ("static, 4 bits", "linear without bias"),
        ("static, 4 bits", "convolution"),
        ("input given", "convolution"),
    ],
)
def test_an_exported_layer_computes_with_the_same_integers(tmp_path, scheme, kind):
    torch.manual_seed(0)
    make, shape = LAYERS[kind]
    plan, operators = PLANS[scheme]
    layer = make()
    quantized, x = built(layer, plan), torch.randn(shape) * 2  # reaches beyond the grid on purpose
    graph = exported(quantized, x, tmp_path / "layer.onnx").graph
    assert operators <= {node.op_type for node in graph.node}
    types = {tensor.data_type for tensor in graph.initializer if torch.Size(tensor.dims).numel() == layer.weight.numel()}
    assert types == {onnx.TensorProto.INT8}
    with torch.no_grad():
        torch.testing.assert_close(onnx_runtime(tmp_path / "layer.onnx", x), quantized(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_onnx_runtime_chooses_its_integer_kernel(tmp_path, kind):
    """A static Linear needs no grid on its output for it, a convolution does."""
    torch.manual_seed(0)
    make, shape = LAYERS[kind]
    plan = LayerPlan(input="grid", input_bits=8, output_bits=8 if kind == "convolution" else None)
    exported(built(make(), plan), torch.randn(shape), tmp_path / "layer.onnx")
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")  # as `OnnxRuntime`
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(str(tmp_path / "layer.onnx"), options, providers=["CPUExecutionProvider"])
    kernels = {node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node}
    assert kernels & {"QGemm", "MatMulIntegerToFloat", "QLinearConv"}
    assert not kernels & {"Gemm", "MatMul", "Conv", "FusedConv"}


@pytest.mark.parametrize(
    "x",
    [torch.randn(6, 16), torch.rand(6, 16) + 1, -torch.rand(6, 16) - 1, torch.zeros(6, 16)],
    ids=["mixed signs", "positive", "negative", "zeros"],
)
@pytest.mark.parametrize("per_row", [False, True], ids=["as a whole", "row by row"])
def test_the_dynamic_grid_is_that_of_onnx(tmp_path, x, per_row):
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Buffer(torch.randint(-127, 128, (8, 16), dtype=torch.int8))
            self.scale = nn.Buffer(torch.rand(8) / 100)

        def forward(self, x: Tensor) -> Tensor:
            return dynamic_linear(x, self.weight, self.scale, per_row)

    module = Product()
    exported(module, x, tmp_path / "product.onnx")
    torch.testing.assert_close(onnx_runtime(tmp_path / "product.onnx", x, fuse=True), module(x), rtol=1e-5, atol=1e-6)


def test_a_row_does_not_depend_on_the_others():
    layer, rows = nn.Linear(48, 32), torch.randn(5, 48) * torch.tensor([1e-3, 1, 1, 1, 1e3])[:, None]
    quantized = built(layer, LayerPlan(input="dynamic-rows"))
    torch.testing.assert_close(quantized(rows[:1]), quantized(rows)[:1])
    error = (quantized(rows) - layer(rows)).norm(dim=1) / layer(rows).norm(dim=1)
    assert error.max() < 0.02


@pytest.mark.parametrize("make", [lambda: nn.Linear(256, 8), lambda: nn.Conv2d(256, 8, 1)], ids=["linear", "convolution"])
def test_no_sum_of_an_almost_dead_channel_leaves_int32(tmp_path, make):
    """Its bias is large in units of its products, and engines add both in int32, where too much changes the sign."""
    torch.manual_seed(0)
    layer = make()
    with torch.no_grad():
        layer.weight[0] = layer.weight[0].abs() * 1e-7
        layer.bias[0] = 5
    quantized = built(layer, LayerPlan(input="grid", input_bits=8), reach=4.0)
    x = torch.rand(4, 256, *[1] * (layer.weight.ndim - 2)) * 4
    exported(quantized, x, tmp_path / "layer.onnx")
    torch.testing.assert_close(onnx_runtime(tmp_path / "layer.onnx", x, fuse=True)[:, 0], layer(x)[:, 0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("bits", [7, pytest.param(8, marks=EXACT_BYTES)])
def test_openvino_computes_the_same(tmp_path, bits):
    openvino = pytest.importorskip("openvino")
    torch.manual_seed(0)
    relu = GriddedActivation(nn.ReLU(), 8)
    relu.output.scale.fill_(0.02)
    plan = LayerPlan(weight_bits=bits, input="grid", input_bits=8)
    module, x = nn.Sequential(built(nn.Conv2d(8, 16, 3, padding=1), plan), relu).eval(), torch.randn(2, 8, 12, 10)
    exported(module, x, tmp_path / "layer.onnx")
    compiled = openvino.compile_model(tmp_path / "layer.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    difference = (torch.from_numpy(compiled(x.numpy())[0]) - module(x)).abs()
    assert difference.max() < 0.021  # one step of the grid, where a sum lies on the border of two
    assert (difference < 1e-5).float().mean() > 0.99


def test_a_dead_channel_keeps_its_bias():
    layer = nn.Conv2d(4, 2, 1)
    with torch.no_grad():
        layer.weight[0] = 1e-12
        layer.weight[1] = 0
        layer.bias.copy_(torch.tensor([3.0, -2.0]))
    quantized = built(layer, LayerPlan(input="grid", input_bits=8))
    torch.testing.assert_close(quantized(torch.zeros(1, 4, 2, 2)), layer(torch.zeros(1, 4, 2, 2)))


GROUPED = {
    "linear": (lambda: nn.Linear(96, 20), (2, 7, 96), 32),
    "1x1": (lambda: nn.Conv2d(48, 12, 1, bias=False), (2, 48, 5, 6), 48),
    "3x3": (lambda: nn.Conv2d(32, 12, 3, stride=2, padding=1), (2, 32, 9, 10), 16),
}


@pytest.mark.parametrize(("kind", "bits"), [("linear", 4), ("1x1", 4), ("3x3", 3), ("linear", 6)])
def test_integers_in_groups_are_those_of_pytorch_on_both_engines(tmp_path, kind, bits):
    openvino = pytest.importorskip("openvino")
    torch.manual_seed(0)
    make, shape, size = GROUPED[kind]
    layer = make()
    quantized = quantized_layer(layer, LayerPlan(weight_bits=bits, group_size=size)).eval()
    quantized.fill(layer)
    x = torch.randn(shape)
    graph = exported(quantized, x, tmp_path / "layer.onnx").graph
    stored = next(tensor for tensor in graph.initializer if tuple(tensor.dims) == tuple(layer.weight.shape))
    assert stored.data_type == (onnx.TensorProto.INT4 if bits <= 4 else onnx.TensorProto.INT8)
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(stored).astype(np.int8), quantized.integers().numpy())
    with torch.no_grad():
        expected = quantized(x)
    torch.testing.assert_close(onnx_runtime(tmp_path / "layer.onnx", x), expected, rtol=1e-5, atol=1e-5)
    model = read_onnx(tmp_path / "layer.onnx")
    assert unpack_openvino(model) == 1
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    torch.testing.assert_close(torch.from_numpy(compiled(x.numpy())[0]), expected, rtol=1e-4, atol=1e-4)
    unpacked = onnx_ir.load(tmp_path / "layer.onnx")
    assert unpack_onnx(unpacked) == 1
    onnx_ir.save(unpacked, tmp_path / "unpacked.onnx")
    assert "DequantizeLinear" not in {node.op_type for node in onnx.load(tmp_path / "unpacked.onnx").graph.node}
    torch.testing.assert_close(onnx_runtime(tmp_path / "unpacked.onnx", x, fuse=True), expected, rtol=1e-5, atol=1e-5)


def test_weights_whose_input_is_on_a_grid_stay_integers(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(
        built(nn.Linear(16, 16), LayerPlan(input="grid", input_bits=8)), built(nn.Linear(16, 8), LayerPlan())
    ).eval()
    exported(model, torch.randn(3, 16), tmp_path / "mixed.onnx")
    mixed = onnx_ir.load(tmp_path / "mixed.onnx")
    assert unpack_onnx(mixed) == 1
    assert sum(node.op_type == "DequantizeLinear" for node in mixed.graph) == 3  # input, weight and bias of the first


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_engines_compute_with_the_trained_integers(tmp_path, bits):
    """Every layer of an exported graph holds the integers that PyTorch rounded its trained weights to."""
    openvino = pytest.importorskip("openvino")
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 4, 1))
    x = torch.randn(2, 8, 12, 10)
    trained_layers = nn.Sequential()
    for module in layer:
        if isinstance(module, nn.Conv2d):
            module = trainable_layer(module, LayerPlan(weight_bits=bits, input="grid", input_bits=bits))
            module.input.set(torch.tensor(2.5 / 2**bits), torch.tensor(2 ** (bits - 1)))
            module.fill(module)
        trained_layers.append(module)
    with torch.no_grad():  # as training would leave them, off what calibration gave
        for parameter in trained_layers.parameters():
            parameter.mul_(1.03)

    stored = nn.Sequential()
    for module in trained_layers:
        if isinstance(module, TrainableLayer):
            quantized = quantized_layer(module, module.plan)
            module.finish(quantized)
            module = quantized
        stored.append(module)
    expected = trained_layers(x).detach()
    assert torch.equal(stored(x), expected)

    graph = exported(stored.eval(), x, tmp_path / "layers.onnx").graph
    integers = [module.weight_grid.integers(module.weight) for module in trained_layers if isinstance(module, TrainableLayer)]
    held = {tensor.dims[0]: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer if len(tensor.dims) == 4}
    for weight in integers:
        assert (held[len(weight)] == weight.numpy()).all()
    compiled = openvino.compile_model(tmp_path / "layers.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for found in (onnx_runtime(tmp_path / "layers.onnx", x), torch.from_numpy(compiled(x.numpy())[0])):
        difference = (found - expected).abs()
        assert (difference < 1e-4).float().mean() > 0.98  # a sum on the border of two steps may fall to either
