"""What each layer costs on an engine, float and quantized: every layer runs there alone, as the operators it is exported to.

A layer that gets its input on a grid, or puts its output on one, starts and ends with integers, as inside the whole graph, and
what an engine does to lay out the memory of its ends is not counted. What it fuses across layers is not seen; `benchmark`
measures the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeGuard

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants
from torch import Tensor, nn

from leandetr.deployment.openvino import core, read_onnx
from leandetr.deployment.opsets import OPSET
from leandetr.deployment.tracing import quiet_export
from leandetr.deployment.unpacking import unpack_onnx
from leandetr.detectors.detector import Detector
from leandetr.errors import unknown
from leandetr.files import read_json
from leandetr.quantization.layers.modules import GIVEN_INPUT, QuantizedConv2d, QuantizedLayer
from leandetr.quantization.layers.operators import fake_quantize, onnx_translations, store_integers

ENGINES = ("onnxruntime", "openvino")
LAYOUT = ("Transpose", "ReorderInput", "ReorderOutput", "Reorder", "Parameter", "Result", "Input", "Output")
WARM_UP, REPEATS = 5, 40


def layer_costs(
    candidates: Mapping[str, Detector], pixels: Tensor, engine: str, threads: int | None = None
) -> dict[str, dict[str, float]]:
    """Milliseconds of every layer under every candidate, for one photograph.

    Args:
        candidates: name -> the detector quantized as a whole with it, or a float one. The layers measured are those that any
            candidate quantizes as it was asked to; where one leaves such a layer float, it is measured as float.
        pixels: (1, 3, H, W) that the detectors run on, for the layers' input shapes.
        engine: "onnxruntime" or "openvino".
        threads: as many as PyTorch uses by default.

    Returns:
        Layer -> candidate -> milliseconds, the least of the repeats: what else the machine does only ever adds.

    Raises:
        UserError: another engine, or OpenVINO is not installed.
    """
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    threads = threads or torch.get_num_threads()
    names = _quantized_layers(candidates.values())
    with TemporaryDirectory() as folder:
        runs: dict[str, dict[str, Callable[[], float]]] = {name: {} for name in names}
        for candidate, detector in candidates.items():
            for name, model in _alone(detector, names, pixels).items():
                runs[name][candidate] = _runner(model, engine, threads, Path(folder) / "layer.onnx")
        return {name: _milliseconds(found) for name, found in runs.items() if found}


def _quantized_layers(detectors: Iterable[Detector]) -> list[str]:
    names: dict[str, None] = {}
    for detector in detectors:
        record = getattr(detector.config, "quantization_config", None)
        names |= dict.fromkeys([] if record is None else record.as_asked)
    return list(names)


class Side(nn.Module):
    """Layers side by side, each with an input of its own, which is put on a grid first where the layer expects it there."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.register_buffer("scale", torch.tensor(0.05))
        self.register_buffer("zero_point", torch.zeros((), dtype=torch.uint8))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(self._run(layer, x) for layer, x in zip(self.layers, inputs, strict=True))

    def _run(self, layer: nn.Module, x: Tensor) -> Tensor:
        y = layer(layer.input(x) if _starts_with_integers(layer) and layer.input is not None else x)
        if (
            isinstance(layer, QuantizedLayer) and _ends_with_integers(layer) and layer.output is None
        ):  # the activation after it has the grid
            y = fake_quantize(y, self.scale, self.zero_point, 0, 255)
        return y


def _starts_with_integers(layer: nn.Module) -> TypeGuard[QuantizedLayer]:
    return isinstance(layer, QuantizedLayer) and layer.plan.input == GIVEN_INPUT


def _ends_with_integers(layer: nn.Module) -> bool:
    """As every convolution on grids does, see `quantization/passes/placement.py`."""
    on_grids = isinstance(layer, QuantizedConv2d) and layer.input is not None
    return on_grids or (isinstance(layer, QuantizedLayer) and layer.output is not None)


@torch.no_grad()
def _alone(detector: Detector, names: list[str], pixels: Tensor) -> dict[str, onnx.ModelProto]:
    """A model of every named layer that runs on images, with its input's real shape."""
    layers = {name: detector.model.get_submodule(name) for name in names}
    inputs: dict[str, Tensor] = {}
    handles = [
        layer.register_forward_pre_hook(lambda _layer, args, name=name: inputs.setdefault(name, args[0].clone()))
        for name, layer in layers.items()
    ]
    try:
        detector.eval().model(pixel_values=pixels)
    finally:
        for handle in handles:
            handle.remove()
    called = [name for name in names if name in inputs]
    side, given = Side([layers[name] for name in called]).eval(), tuple(inputs[name] for name in called)
    with quiet_export():
        program = torch.onnx.export(
            side,
            given,
            dynamo=True,
            opset_version=OPSET,
            input_names=[f"x{index}" for index in range(len(called))],
            output_names=[f"y{index}" for index in range(len(called))],
            custom_translation_table=onnx_translations(),
            optimize=False,
            verbose=False,
        )
    assert program is not None  # with dynamo
    common.InlinePass()(program.model)
    fold_constants(program.model)
    store_integers(program.model.graph)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(program.model)
    unpack_onnx(program.model)  # as when a file is loaded
    graph = onnx_ir.serde.serialize_model(program.model).graph
    return {
        name: _cut(graph, index, inputs[name].shape, _starts_with_integers(layers[name]), _ends_with_integers(layers[name]))
        for index, name in enumerate(called)
    }


def _cut(graph: onnx.GraphProto, index: int, shape: torch.Size, from_integers: bool, to_integers: bool) -> onnx.ModelProto:
    """The part of the graph from the input x`index` to the output y`index`, without the quantization that neighbours do."""
    producers = {name: node for node in graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    start, end = f"x{index}", f"y{index}"
    if from_integers:
        start = next(node.output[0] for node in graph.node if node.op_type == "QuantizeLinear" and start in node.input)
    if to_integers:
        end = producers[end].input[0]
    needed, waiting = set(), [end]
    while waiting:
        name = waiting.pop()
        if name in needed or name == start:
            continue
        needed.add(name)
        waiting += producers[name].input if name in producers else []
    kinds = {True: TensorProto.UINT8, False: TensorProto.FLOAT}
    return helper.make_model(
        helper.make_graph(
            [node for node in graph.node if needed & set(node.output)],
            "layer",
            [helper.make_tensor_value_info(start, kinds[from_integers], shape)],
            [helper.make_tensor_value_info(end, kinds[to_integers], None)],
            [constants[name] for name in needed if name in constants],
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=10,
    )


def _runner(model: onnx.ModelProto, engine: str, threads: int, file: Path) -> Callable[[], float]:
    """A call that runs a model of one input once and gives the milliseconds of its operators; `file` is overwritten."""
    given = model.graph.input[0]
    shape = [dim.dim_value for dim in given.type.tensor_type.shape.dim]
    rng = np.random.default_rng(0)
    integers = given.type.tensor_type.elem_type == TensorProto.UINT8
    x = rng.integers(0, 256, shape, np.uint8) if integers else rng.standard_normal(shape, np.float32)
    onnx.save(model, file)
    return (_openvino if engine == "openvino" else _onnxruntime)(file, x, threads)


def _openvino(file: Path, x: NDArray, threads: int) -> Callable[[], float]:
    config = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
        "PERF_COUNT": True,
    }
    request = core().compile_model(read_onnx(file), "CPU", config).create_infer_request()

    def run() -> float:
        request.infer({0: x}, share_inputs=True, share_outputs=True)
        return sum(
            info.real_time.total_seconds() * 1e3 for info in request.get_profiling_info() if info.node_type not in LAYOUT
        )

    return run


def _onnxruntime(file: Path, x: NDArray, threads: int) -> Callable[[], float]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, threads
    options.enable_profiling, options.profile_file_prefix = True, str(file.parent / "profile")
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x}
    for _ in range(WARM_UP + REPEATS):  # the profile can only be read when it has ended
        session.run(None, feed)
    events = [event for event in read_json(Path(session.end_profiling())) if event.get("cat") == "Node"]
    by_node: dict[str, list[float]] = {}
    for event in events:
        if event["name"].endswith("_kernel_time") and event["args"]["op_name"] not in LAYOUT:
            by_node.setdefault(event["name"], []).append(event["dur"] / 1e3)
    taken = iter(np.sum(list(by_node.values()), axis=0))
    return lambda: float(next(taken))


def _milliseconds(runs: dict[str, Callable[[], float]]) -> dict[str, float]:
    return {name: min([run() for _ in range(WARM_UP + REPEATS)][WARM_UP:]) for name, run in runs.items()}
