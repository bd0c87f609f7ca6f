"""What an exported integer model promises: integers in the graph, a file less than half as large, PyTorch's answers."""

import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto

from leandetr.deployment.agreement import agreement
from leandetr.deployment.onnx import export_onnx
from leandetr.deployment.pytorch import PyTorchRuntime
from leandetr.deployment.runtimes import open_runtime
from leandetr.detectors.attention import open_attention
from leandetr.errors import UserError
from leandetr.machine import adds_bytes_exactly
from leandetr.quantization.config import scheme_config
from leandetr.quantization.layers.trainable import TrainableLayer
from leandetr.quantization.quantize import quantize

# The operators that show how a scheme computes; the float file has none of any.
OPERATORS = {
    "weight-only": {"DequantizeLinear"},
    "dynamic": {"DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger"},
    "static": {"DequantizeLinear", "QuantizeLinear"},
}


@pytest.fixture(scope="module")
def exported(build, tmp_path_factory):
    """exported(name, scheme) -> the detector quantized with the scheme, and the file it was exported to."""
    made = {}

    def export(name, scheme):
        if (name, scheme) not in made:
            pixels = torch.randn(4, 3, 96, 96, generator=torch.Generator().manual_seed(7))
            batches = [{"pixel_values": pixels, "pixel_mask": torch.ones(4, 96, 96, dtype=torch.int64)}]
            options = {"calibration_images": 4} if scheme == "static" else {}
            # Wilder weights blow every rounding up to another answer, as trained ones do not.
            detector = quantize(build(name, noise=0.12), scheme_config(scheme, **options), batches)
            made[name, scheme] = detector, export_onnx(detector, tmp_path_factory.mktemp("int8") / "model.onnx")
        return made[name, scheme]

    return export


MODELS = [
    pytest.param("detr", "weight-only", marks=pytest.mark.slow),
    pytest.param("detr", "dynamic", marks=pytest.mark.slow),
    ("detr", "static"),
    pytest.param("rt_detr_v2", "static", marks=pytest.mark.slow),
    pytest.param("rt_detr_v2", "weight-only", marks=pytest.mark.slow),
    pytest.param("rt_detr_v2", "dynamic", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "scheme"), MODELS)
def test_the_graph_computes_with_integers(exported, artefact, name, scheme):
    detector, path = exported(name, scheme)
    graph, float_graph = onnx.load(path).graph, onnx.load(artefact(name)[1]).graph
    operators = {operator for set_ in OPERATORS.values() for operator in set_}
    assert {node.op_type for node in graph.node} & operators == OPERATORS[scheme]
    assert not {node.op_type for node in float_graph.node} & operators
    elements = {kind: 0 for kind in (TensorProto.INT8, TensorProto.FLOAT)}
    for tensor in graph.initializer:
        if tensor.data_type in elements and len(tensor.dims) > 1:  # weights; zero points are vectors
            elements[tensor.data_type] += torch.Size(tensor.dims).numel()
    weights = [tensor for tensor in detector.state_dict().values() if tensor.dtype == torch.int8 and tensor.ndim > 1]
    stored = {weight.numpy().tobytes() for weight in weights}  # a shared head has two names
    assert elements[TensorProto.INT8] == sum(map(len, stored))
    assert elements[TensorProto.INT8] > 5 * elements[TensorProto.FLOAT]
    assert path.stat().st_size < 0.5 * artefact(name)[1].stat().st_size


@pytest.mark.parametrize(("name", "scheme"), MODELS)
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_every_engine_answers_as_pytorch_does(exported, batch, name, scheme, engine):
    if engine == "openvino":
        pytest.importorskip("openvino")
    detector, path = exported(name, scheme)
    runtime = open_runtime(path, engine=engine)
    assert runtime.metadata.scheme == scheme
    pixels = batch(3)["pixel_values"]
    ours, theirs = PyTorchRuntime(detector).run(pixels, None), runtime.run(pixels, None)
    exact = adds_bytes_exactly() or engine == "onnxruntime" or scheme != "static"
    assert agreement(ours, theirs, detector.head, 1e-2 if exact else 5e-2)[0] > 0.95


@pytest.mark.slow
def test_products_of_attention_take_the_integers_that_pytorch_computed(build, batch, tmp_path):
    operands = scheme_config("static", attention=True, calibration_images=2)
    alone = scheme_config("weight-only", overrides={"*": "float", "*_attn": operands})
    pixels = batch(2)["pixel_values"]
    detector = quantize(build("detr"), alone, [batch(2)])
    path = export_onnx(detector, tmp_path / "model.onnx")
    ours = {}
    for slots in open_attention(detector.model).values():
        for operand in (slots.query, slots.key, slots.value, slots.probabilities):

            def integers(_slot, _inputs, output, grid=operand.output):
                ours[grid.scale.item()] = torch.round(output / grid.scale) + grid.zero_point

            operand.register_forward_hook(integers)
    PyTorchRuntime(detector).run(pixels, None)

    model = onnx.load(path)
    made = {output: node for node in model.graph.node for output in node.output}
    products = [node for node in model.graph.node if node.op_type == "MatMul" and all(_is_integer(made, i) for i in node.input)]
    assert len(products) == 2 * (1 + 2 * 2)  # q k^T and p v, in one encoder layer and two decoder layers
    scales = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    rounding = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert len(rounding) == len(ours) == 4 * (1 + 2 * 2)
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(node.output[0]) for node in rounding)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run([node.output[0] for node in rounding], {"pixel_values": pixels.numpy()})
    for node, theirs in zip(rounding, found, strict=True):
        mine = ours[scales[node.input[1]].item()]
        theirs = torch.from_numpy(theirs).reshape(mine.shape).float()
        assert (theirs - mine).abs().max() <= 1  # sums in another order may fall on the other side of a half
        assert (theirs != mine).float().mean() < 0.01


def _is_integer(made, name):
    """Whether a tensor comes from an integer grid, by way of nothing but changes of its layout."""
    while name in made and made[name].op_type in ("Transpose", "Reshape"):
        name = made[name].input[0]
    return name in made and made[name].op_type == "DequantizeLinear"


@pytest.mark.slow
def test_a_low_bit_file_holds_the_integers_that_were_trained(build, tmp_path):
    pixels = torch.randn(4, 3, 96, 96, generator=torch.Generator().manual_seed(7))
    batches = [{"pixel_values": pixels, "pixel_mask": torch.ones(4, 96, 96, dtype=torch.int64)}]
    trained = quantize(build("detr"), scheme_config("low-bit", bits="3-4-8", calibration_images=4), batches)
    expected = {
        layer.weight_grid.integers(layer.weight).numpy().tobytes()
        for layer in trained.model.modules()
        if isinstance(layer, TrainableLayer)
    }
    graph = onnx.load(export_onnx(trained, tmp_path / "model.onnx")).graph
    weights = [tensor for tensor in graph.initializer if tensor.data_type == TensorProto.INT8 and len(tensor.dims) > 1]
    assert {onnx.numpy_helper.to_array(tensor).tobytes() for tensor in weights} == expected


def test_an_opset_without_the_types_is_one_sentence(build, tmp_path):
    detector = quantize(build("detr"), scheme_config("weight-only", bits=4, calibration_images=0))
    with pytest.raises(UserError, match="opset 17 lacks the types of a quantized model; give 21 or more"):
        export_onnx(detector, tmp_path / "model.onnx", opset=17)
    assert not list(tmp_path.iterdir())
