"""A detector as one ONNX file, checked against PyTorch before it gets its name.

    pixel_values (B, 3, H, W) float32, normalised      ->   logits (B, N, C), boxes (B, N, 4) in (cx, cy, w, h) of [0, 1]
    pixel_mask (B, H, W) int64, 1 where there is image      (only where the size is not fixed)

The axis of any length is called "batch", and where the size is not fixed there are "height" and "width".
`postprocess` makes detections of the two outputs, as it does of PyTorch's. Integer weights stay integers in the file. An
end-to-end file goes from photographs to detections instead, see `end_to_end.py`.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir
import torch
from onnx_ir.passes import Sequential, common
from onnxscript.optimizer import fold_constants
from torch import Tensor

from leandetr.deployment.attention import attention_translations
from leandetr.deployment.end_to_end import EndToEnd
from leandetr.deployment.half import to_half, without_norms
from leandetr.deployment.metadata import KEY, describe, scheme_of
from leandetr.deployment.opsets import OPSET, TRACED, check_opset, lower
from leandetr.deployment.pytorch import PlainDetector
from leandetr.deployment.rewrites import (
    forget_types,
    infer_free_lengths,
    name_axes,
    own_zero_points,
    pad_in_convolutions,
    select_tokens,
    spell_out_group_norms,
)
from leandetr.deployment.runtimes import OnnxRuntime
from leandetr.deployment.tensorrt import check_tensorrt, to_tensorrt
from leandetr.deployment.tracing import ExportError, preprocessing_for, quiet_export, root, sample_of, symbolic_len
from leandetr.deployment.verify import verify
from leandetr.detectors.detector import Detector
from leandetr.errors import UserError
from leandetr.files import writing
from leandetr.quantization.training.finish import finish, in_training


def export_onnx(  # noqa: PLR0913 - what a file can be is what is asked
    detector: Detector,
    path: Path,
    image_size: tuple[int, int] | None = None,
    dynamic_batch: bool = True,
    opset: int = OPSET,
    end_to_end: bool = False,
    half: bool = False,
    tensorrt: bool = False,
) -> Path:
    """Write a detector, float or quantized, as an ONNX file that carries all that is needed to use it.

    Args:
        detector: any of the families; it is left as it is. Of one in low-bit training the file holds what `finish` makes.
        path: where the file goes, ending in .onnx; an existing one is replaced once the new one has been checked.
        image_size: fixed (height, width) that photographs are resized to. By default that of the detector's preprocessing; if
            this keeps the aspect ratio, height and width stay free and the graph takes a padding mask.
        dynamic_batch: any number of images in a call, else always one.
        opset: of ONNX, 17 or newer; graphs with integer weights need 21, but for TensorRT.
        end_to_end: with pre- and post-processing in the graph; needs a fixed size, to which it resizes photographs of any.
        half: with products in float16, see `half.py`; inputs and outputs stay as they are. Of float detectors.
        tensorrt: with integers as TensorRT takes them, see `tensorrt.py`. Of detectors quantized for it.

    Before the file gets its name, ONNX Runtime and PyTorch answer the same random pixels. A warning says when fewer than 95 %
    of the queries agree, unless the boxes with a score of 0.3 or more do: where scores nearly tie, as those of untrained
    weights, or are rounded, which of them become queries is arbitrary.

    Raises:
        UserError: another ending, a size that the family cannot take or that has fewer cells than queries, the model cannot
            be exported like this, or ONNX Runtime cannot run the file.
    """
    path = Path(path)
    check_onnx(path)
    if tensorrt:
        check_tensorrt(detector, path)
    check_opset(path, opset, stored_integers=scheme_of(detector) is not None and not tensorrt)
    if half and scheme_of(detector) is not None:
        raise UserError(f"{path}: half precision is of float detectors, this one is quantized; leave out --half")
    if in_training(detector):
        detector = finish(detector)
    if half:
        detector = without_norms(detector)
    preprocessing = preprocessing_for(detector, path, image_size, end_to_end)
    training = detector.training
    detector.eval()
    model = (EndToEnd(detector, preprocessing) if end_to_end else PlainDetector(detector)).eval()
    metadata = describe(detector, preprocessing, end_to_end, half)
    try:
        with writing(path) as temporary:
            with quiet_export(), torch.no_grad():
                graph = _to_onnx(model, sample_of(2 if dynamic_batch else 1, metadata), dynamic_batch, max(opset, TRACED))
            if half:
                to_half(graph)
            if tensorrt:
                to_tensorrt(graph)
            if opset < TRACED:
                lower(graph)
            graph.metadata_props[KEY] = metadata.to_json()
            onnx_ir.save(graph, temporary)
            verify(path, model, OnnxRuntime(temporary), (1, 3) if dynamic_batch else (1,))
    except ExportError as error:
        raise UserError(f"{path}: {detector.config.model_type} {error}") from error
    finally:
        detector.train(training)
    return path


def check_onnx(path: Path) -> None:
    """Raises UserError where `path` is no name for an ONNX file."""
    if path.suffix != ".onnx":
        mend = "add --to openvino" if path.suffix == ".xml" else "name it so"
        raise UserError(f"{path}: an ONNX file ends in .onnx; {mend}")


def _to_onnx(model: PlainDetector | EndToEnd, sample: tuple[Tensor, ...], dynamic_batch: bool, opset: int) -> onnx_ir.Model:
    from leandetr.quantization.layers.operators import onnx_translations, store_integers

    free = torch.export.Dim.DYNAMIC
    batch = {0: free} if dynamic_batch else {}
    inputs, outputs, sides = ["pixel_values", "pixel_mask"], ["logits", "boxes"], [(2, 3) if len(sample) == 2 else (), (1, 2)]
    if isinstance(model, EndToEnd):
        inputs, outputs, sides = ["images"], ["scores", "labels", "boxes"], [(1, 2)]
    shapes = tuple(batch | dict.fromkeys(free_sides, free) for free_sides in sides[: len(sample)])
    device = next(model.parameters()).device
    sample = tuple(tensor.to(device) for tensor in sample)
    try:
        with symbolic_len(model):
            traced = torch.export.export(model, sample, dynamic_shapes=shapes, strict=False)
        program = torch.onnx.export(
            traced,
            sample,
            dynamo=True,
            opset_version=opset,
            input_names=inputs[: len(sample)],
            output_names=outputs,
            custom_translation_table=onnx_translations() | attention_translations(),
            optimize=False,
            verbose=False,
        )
    except Exception as error:  # the exporter wraps whatever went wrong inside the model
        raise ExportError(f"cannot be exported at opset {opset}: {root(error)}") from error
    # The exporter's own optimisation loses a node of box-refining Deformable DETR in its rewrite rules, and it keeps a Python
    # stack trace with every node, which outweighs the weights of a small model.
    assert program is not None  # with dynamo
    common.InlinePass()(program.model)
    fold_constants(program.model)
    store_integers(program.model.graph)
    infer_free_lengths(program.model.graph)
    select_tokens(program.model.graph)
    pad_in_convolutions(program.model.graph)
    clean = Sequential(
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),
        common.RemoveUnusedOpsetsPass(),
        common.ClearMetadataAndDocStringPass(),
    )
    cleaned = clean(program.model).model
    spell_out_group_norms(cleaned.graph)
    own_zero_points(cleaned.graph)
    forget_types(cleaned.graph)
    name_axes(cleaned.graph)
    return cleaned
