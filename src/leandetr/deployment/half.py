"""Float16 where it is safe, float32 where it is not.

Products (convolutions, matrices) compute in float16, and what only passes their results on does so too. In float32 stay inputs
and outputs, norms, softmax, logarithms and every other operator that is not named here, the residual streams around norms, and
what comes after the last product on the way to a box, a score that chooses queries, or a place that is sampled: a float16
below 1 has steps of a 2048th, a third of a pixel in an image of 640.

The converters that there are (onnxruntime's, onnxconverter-common's) put every value between two float32 nodes through float16,
boxes too; hence this one.
"""

from __future__ import annotations

import copy

import numpy as np
import onnx_ir
from onnx_ir import DataType
from onnx_ir.passes import common

from leandetr.deployment.rewrites import constant, forget_types, value_of
from leandetr.detectors.detector import Detector
from leandetr.quantization.passes.calibrate import blank
from leandetr.quantization.passes.fold import fold_batch_norms

PRODUCTS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
#: of values that are all float16 or constant
PASSING = {"Add", "Mul", "Sub", "Relu", "LeakyRelu", "Clip", "Sigmoid", "Erf", "Gelu", "HardSwish", "HardSigmoid"}
PASSING |= {"MaxPool", "AveragePool", "GlobalAveragePool", "Pad", "Concat", "Split", "Slice", "Gather", "Expand", "Tile"}
PASSING |= {"Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity"}
#: operator -> its input that must be exact
EXACT = {"GridSample": 1, "TopK": 0}


def without_norms(detector: Detector) -> Detector:
    """A copy whose BatchNorms are folded into their convolutions, so that no float32 norm stands between two of these."""
    detector = copy.deepcopy(detector).eval()
    model, (pixels, mask) = detector.model, blank(detector)
    fold_batch_norms(model, lambda: model(pixel_values=pixels, pixel_mask=mask))
    return detector


def to_half(model: onnx_ir.Model) -> None:
    """Let a float graph compute in float16 where it is safe. Its inputs and outputs stay as they are."""
    common.ShapeInferencePass()(model)
    graph, halves = model.graph, _Halves(model.graph)
    exact = _exact(graph)
    for node in list(graph):
        if node.op_type in PRODUCTS or (node.op_type in PASSING and node not in exact and halves.all_half(node)):
            halves.convert(node)
    halves.close()
    common.RemoveUnusedNodesPass()(model)  # and the float weights
    forget_types(graph)


class _Halves:
    """The values that are float16, and the casts between them and the others."""

    def __init__(self, graph: onnx_ir.Graph) -> None:
        self.graph = graph
        self.nodes: set[onnx_ir.Node] = set()
        self.values: dict[onnx_ir.Value, onnx_ir.Value] = {}  # float32 -> its float16; one that was made so, itself

    def all_half(self, node: onnx_ir.Node) -> bool:
        """Whether all that a node reads in floats is float16 by now, or constant, and something is no constant."""
        read = [value for value in node.inputs if value is not None and value_of(value) is None]
        known = all(value.dtype is not None for value in read)
        floats = [value for value in read if value.dtype in (DataType.FLOAT, DataType.FLOAT16)]
        return known and bool(floats) and all(self.values.get(value) is value for value in floats)

    def convert(self, node: onnx_ir.Node) -> None:
        """Let a node read and write float16, unless a constant of its does not fit or a type is unknown."""
        values = [value for value in (*node.inputs, *node.outputs) if value is not None]
        arrays = [array for value in node.inputs if (array := value_of(value)) is not None and array.dtype == np.float32]
        fits = all(np.abs(array).max(initial=0) <= np.finfo(np.float16).max for array in arrays)
        if not fits or any(value.dtype is None and value_of(value) is None for value in values):
            return
        for index, value in enumerate(node.inputs):
            if value is not None and _is_float(value):
                node.replace_input_with(index, self._half_of(value))
        for value in node.outputs:
            value.dtype = DataType.FLOAT16
            self.values[value] = value
        self.nodes.add(node)

    def close(self) -> None:
        """Cast back for those who read in float32, and for the graph's outputs."""
        for node in [node for node in self.graph if node in self.nodes]:
            for value in node.outputs:
                readers = [(use.node, use.idx) for use in value.uses() if use.node not in self.nodes]
                if not readers and not value.is_graph_output():
                    continue
                cast = self._cast(value, DataType.FLOAT)
                for reader, index in readers:
                    reader.replace_input_with(index, cast)
                if value.is_graph_output():
                    cast.name, value.name, cast.shape = value.name, f"{value.name}_half", value.shape
                    self.graph.outputs[self.graph.outputs.index(value)] = cast

    def _half_of(self, value: onnx_ir.Value) -> onnx_ir.Value:
        if value not in self.values:
            array = value_of(value)
            if array is None:
                self.values[value] = self._cast(value, DataType.FLOAT16)
            else:
                self.values[value] = constant(self.graph, f"{value.name}_half", array.astype(np.float16))
        return self.values[value]

    def _cast(self, value: onnx_ir.Value, to: DataType) -> onnx_ir.Value:
        node = onnx_ir.node("Cast", [value], {"to": onnx_ir.AttrInt64("to", to)})
        node.outputs[0].name, node.outputs[0].dtype = f"{value.name}_{to.name.lower()}", to
        producer = value.producer()
        if producer is None:
            self.graph.insert_before(self.graph[0], node)
        else:
            self.graph.insert_after(producer, node)
        return node.outputs[0]


def _is_float(value: onnx_ir.Value) -> bool:
    array = value_of(value)
    return value.dtype == DataType.FLOAT if array is None else array.dtype == np.float32


def _exact(graph: onnx_ir.Graph) -> set[onnx_ir.Node]:
    """The nodes between the last product and an output, or an input of `EXACT`."""
    begin = [*graph.outputs, *(node.inputs[EXACT[node.op_type]] for node in graph if node.op_type in EXACT)]
    found: set[onnx_ir.Node] = set()
    waiting = [value.producer() for value in begin if value is not None]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found and node.op_type not in PRODUCTS:
            found.add(node)
            waiting += [value.producer() for value in node.inputs if value is not None]
    return found
