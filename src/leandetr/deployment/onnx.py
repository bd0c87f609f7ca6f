"""A detector as one ONNX file, checked against PyTorch before it gets its name.

    pixel_values (B, 3, H, W) float32, normalised      ->   logits (B, N, C), boxes (B, N, 4) in (cx, cy, w, h) of [0, 1]
    pixel_mask (B, H, W) int64, 1 where there is image      (only where the size is not fixed)

The axis of any length is called "batch", and where the size is not fixed there are "height" and "width".
`postprocess` makes detections of the two outputs, as it does of PyTorch's. Integer weights stay integers in the file. An
end-to-end file goes from photographs to detections instead, see `end_to_end.py`.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir
import torch
from onnx_ir.passes import Sequential, common
from onnxscript.optimizer import fold_constants
from torch import Tensor

from leandetr.deployment.agreement import SureBoxes, agreement, in_words, sure_boxes
from leandetr.deployment.attention import attention_translations
from leandetr.deployment.end_to_end import EndToEnd
from leandetr.deployment.half import to_half, without_norms
from leandetr.deployment.metadata import KEY, Metadata, describe, scheme_of
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
from leandetr.detectors.create import check_size
from leandetr.detectors.detector import Detector
from leandetr.detectors.image_size import check_answers
from leandetr.detectors.preprocessing import resized_to
from leandetr.errors import UserError
from leandetr.files import writing
from leandetr.heads import Head
from leandetr.quantization.training.finish import finish, in_training
from leandetr.structures import Preprocessing

logger = logging.getLogger(__name__)

# (height, width) at which a graph of free size is traced, and one at which it is checked besides
FREE_SIZE, OTHER_SIZE = (192, 256), (256, 224)
CHECKS = "TRANSFORMERS_DISABLE_TORCH_CHECK"
# Of the boxes, below which a warning is given: where two encoder scores nearly tie, either engine may choose another query.
AGREEING = 0.95
# Largest difference of a class probability or box coordinate: of float arithmetic in another order; of values that such a
# difference puts on the next step of an integer grid, of ONNX Runtime's 8-bit arithmetic behind integer weights; of halves.
FLOAT_TOLERANCE, INTEGER_TOLERANCE = 1e-3, 1e-2


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
    preprocessing = _preprocessing(detector, path, image_size, end_to_end)
    training = detector.training
    detector.eval()
    model = (EndToEnd(detector, preprocessing) if end_to_end else PlainDetector(detector)).eval()
    metadata = describe(detector, preprocessing, end_to_end, half)
    try:
        with quiet_export(), torch.no_grad(), writing(path) as temporary:
            graph = _to_onnx(model, _sample(2 if dynamic_batch else 1, metadata), dynamic_batch, max(opset, TRACED))
            if half:
                to_half(graph)
            if tensorrt:
                to_tensorrt(graph)
            if opset < TRACED:
                lower(graph)
            graph.metadata_props[KEY] = metadata.to_json()
            onnx_ir.save(graph, temporary)
            exact = scheme_of(detector) is None and not half
            share, sure = _check(model, temporary, dynamic_batch, FLOAT_TOLERANCE if exact else INTEGER_TOLERANCE)
    except _ExportError as error:
        raise UserError(f"{path}: {detector.config.model_type} {error}") from error
    finally:
        detector.train(training)
    if share < AGREEING and sure.found <= AGREEING * sure.count:
        logger.warning("%s: %s; compare `leandetr evaluate` of both", path, in_words(share, sure))
    return path


def _preprocessing(detector: Detector, path: Path, image_size: tuple[int, int] | None, end_to_end: bool) -> Preprocessing:
    """How photographs are prepared for the file. Raises UserError for what the detector or the file cannot take."""
    preprocessing = detector.preprocessing
    if image_size is not None:
        backbone = detector.config.to_dict().get("backbone_config") or {}
        check_size(detector.config.model_type, image_size, detector.family.divisor(backbone))
        preprocessing = replace(preprocessing, **resized_to((image_size[0], image_size[1])))
    if end_to_end and preprocessing.size is None:
        raise UserError(f"{path}: an end-to-end file resizes to one size, which this detector has not; add --image-size")
    if end_to_end and preprocessing.resample != "bilinear":
        raise UserError(
            f"{path}: an end-to-end file resizes bilinearly, this detector's resample is {preprocessing.resample}; "
            "leave out --end-to-end"
        )
    if preprocessing.size is not None:
        check_answers(detector, preprocessing.size, str(path))
    return preprocessing


class _ExportError(Exception):
    """What a family cannot do, without the name of the file."""


def check_onnx(path: Path) -> None:
    """Raises UserError where `path` is no name for an ONNX file."""
    if path.suffix != ".onnx":
        mend = "add --to openvino" if path.suffix == ".xml" else "name it so"
        raise UserError(f"{path}: an ONNX file ends in .onnx; {mend}")


def _sample(images: int, metadata: Metadata, free_size: tuple[int, int] = FREE_SIZE) -> tuple[Tensor, ...]:
    """Random inputs: photographs; or normalised pixels, and without a fixed size a mask that pads the last image at the right
    and the bottom."""
    size, generator = metadata.preprocessing.size, torch.Generator().manual_seed(images)
    if metadata.end_to_end:
        return (torch.randint(0, 256, (images, *free_size, 3), dtype=torch.uint8, generator=generator),)
    height, width = size or free_size
    pixels = torch.randn(images, 3, height, width, generator=generator)
    if size is not None:
        return (pixels,)
    mask = torch.ones(images, height, width, dtype=torch.int64)
    mask[-1, height * 3 // 4 :] = mask[-1, :, width * 3 // 4 :] = 0
    return pixels * mask[:, None], mask


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
        with _symbolic_len(model):
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
        raise _ExportError(f"cannot be exported at opset {opset}: {_root(error)}") from error
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


def _check(model: PlainDetector | EndToEnd, file: Path, dynamic_batch: bool, tolerance: float) -> tuple[float, SureBoxes]:
    """The smallest share of queries that agree with PyTorch, and all its sure boxes, on other inputs than the file was traced
    with."""
    runtime = OnnxRuntime(file)
    metadata, device = runtime.metadata, next(model.parameters()).device
    free = metadata.end_to_end or metadata.preprocessing.size is None
    shares, sure = [], SureBoxes(0, 0)
    for count in (1, 3) if dynamic_batch else (1,):
        for size in (FREE_SIZE, OTHER_SIZE) if free else (FREE_SIZE,):
            sample = _sample(count, metadata, size)
            try:
                if metadata.end_to_end:
                    found = _as_queries(runtime.run_end_to_end(*sample), size, len(metadata.class_map))
                else:
                    found = runtime.run(*sample, *[None] * (2 - len(sample)))
            except Exception as error:  # ONNX Runtime's errors have no common class
                fixed = "; name a fixed image size" if metadata.preprocessing.size is None else ""
                shape = " x ".join(map(str, sample[0].shape))
                raise _ExportError(f"was exported, but ONNX Runtime cannot run it on pixels of {shape}{fixed}") from error
            expected, head = model(*[tensor.to(device) for tensor in sample]), metadata.head
            if metadata.end_to_end:
                expected, head = _as_queries(expected, size, len(metadata.class_map)), Head.SIGMOID
            shares.append(agreement(expected, found, head, tolerance)[0])
            boxes = sure_boxes(expected, found, head, INTEGER_TOLERANCE)
            sure = SureBoxes(sure.count + boxes.count, sure.found + boxes.found)
    return min(shares), sure


def _as_queries(detections: tuple[Tensor, ...], size: tuple[int, int], classes: int) -> tuple[Tensor, Tensor]:
    """Scores, labels and boxes in pixels as logits of a sigmoid head and boxes relative to the image."""
    scores, labels, boxes = (tensor.cpu() for tensor in detections)
    logits = torch.full((*scores.shape, classes), -torch.inf).scatter(2, labels[..., None], scores.logit()[..., None])
    return logits, boxes / torch.tensor([size[1], size[0]] * 2)


@contextmanager
def _symbolic_len(model: PlainDetector | EndToEnd) -> Iterator[None]:
    """RT-DETR takes its batch size from `len` of a tensor, which Python makes a plain number, and so a constant of the graph.

    In the model's own module `len` stays symbolic meanwhile; the other way, strict tracing, takes three times as long.
    """
    module: Any = sys.modules[type(model.model).__module__]
    module.len = lambda value: value.shape[0] if isinstance(value, Tensor) else len(value)
    try:
        yield
    finally:
        del module.len


@contextmanager
def quiet_export() -> Iterator[None]:
    """Without the exporter's log and warnings, and without transformers' checks on tensor values, which a graph cannot hold."""
    disabled, checks = logging.root.manager.disable, os.environ.get(CHECKS)
    logging.disable(logging.WARNING)
    os.environ[CHECKS] = "1"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        os.environ.pop(CHECKS)
        if checks is not None:
            os.environ[CHECKS] = checks


def _root(error: BaseException) -> str:
    """The first line of the error that started it all."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
