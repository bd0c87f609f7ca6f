"""What an exported integer model promises: integers in the graph, a file less than half as large, PyTorch's answers."""

import onnx
import pytest
import torch
from onnx import TensorProto

from leandetr.deployment.onnx import agreement, export_onnx
from leandetr.deployment.runtimes import PyTorchRuntime, open_runtime
from leandetr.errors import UserError
from leandetr.quantization.config import scheme_config
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
    ("detr", "weight-only"),
    ("detr", "dynamic"),
    ("detr", "static"),
    ("rt_detr_v2", "static"),
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
    assert elements[TensorProto.INT8] == sum(
        tensor.numel() for tensor in detector.state_dict().values() if tensor.dtype == torch.int8 and tensor.ndim > 1
    )
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
    assert agreement(ours, theirs, detector.head, 1e-2)[0] > 0.95


def test_an_opset_without_the_types_is_one_sentence(build, tmp_path):
    detector = quantize(build("detr"), scheme_config("weight-only", bits=4))
    with pytest.raises(UserError, match="opset 17 lacks the types of a quantized model; give 21 or more"):
        export_onnx(detector, tmp_path / "model.onnx", opset=17)
    assert not list(tmp_path.iterdir())
