"""A detector as one ONNX file, checked against PyTorch before it gets its name.

    pixel_values (B, 3, H, W) float32, normalised      ->   logits (B, N, C), boxes (B, N, 4) in (cx, cy, w, h) of [0, 1]
    pixel_mask (B, H, W) int64, 1 where there is image      (only where the size is not fixed)

`postprocess` makes detections of the two outputs, as it does of PyTorch's. Integer weights stay integers in the file.
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

import numpy as np
import onnx_ir
import torch
from onnx_ir.passes import Sequential, common
from onnxscript.optimizer import fold_constants
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from torch import Tensor

from leandetr.deployment.metadata import KEY, describe, scheme_of
from leandetr.deployment.rewrites import forget_types, own_zero_points, pad_in_convolutions, select_tokens
from leandetr.deployment.runtimes import OnnxRuntime, PlainDetector
from leandetr.detectors.detector import Detector
from leandetr.errors import UserError
from leandetr.files import writing
from leandetr.quantization.lowbit import finish, in_training

logger = logging.getLogger(__name__)

INTEGER_OPSET = 21  # the first with 4-bit integers and scales of groups
# (height, width) at which a graph of free size is traced, and one at which it is checked besides
FREE_SIZE, OTHER_SIZE = (192, 256), (256, 224)
CHECKS = "TRANSFORMERS_DISABLE_TORCH_CHECK"
# Of the queries, below which a warning is given: where two encoder scores nearly tie, either engine may choose another query.
AGREEING = 0.95
# Largest difference of a class probability or box coordinate: of float arithmetic in another order; of values that such a
# difference puts on the next step of an integer grid, and of ONNX Runtime's own 8-bit arithmetic behind integer weights.
FLOAT_TOLERANCE, INTEGER_TOLERANCE = 1e-3, 1e-2


def export_onnx(
    detector: Detector,
    path: Path,
    image_size: tuple[int, int] | None = None,
    dynamic_batch: bool = True,
    opset: int = 21,
) -> Path:
    """Write a detector, float or quantized, as an ONNX file that carries all that is needed to use it.

    Args:
        detector: any of the families; it is left as it is. Of one in low-bit training the file holds what `finish` makes.
        path: where the file goes; an existing one is replaced once the new one has been checked.
        image_size: fixed (height, width) that photographs are resized to. By default that of the detector's preprocessing; if
            this keeps the aspect ratio, height and width stay free and the graph takes a padding mask.
        dynamic_batch: any number of images in a call, else always one.
        opset: of ONNX; integer graphs need 21.

    Before the file gets its name, ONNX Runtime and PyTorch answer the same random pixels. A warning says when fewer than 95 %
    of the queries agree, as happens with untrained weights, whose scores tie: which of them become queries is then arbitrary.

    Raises:
        UserError: the model cannot be exported like this, or ONNX Runtime cannot run the file.
    """
    path = Path(path)
    if scheme_of(detector) is not None and opset < INTEGER_OPSET:
        raise UserError(f"{path}: opset {opset} lacks the types of a quantized model; give {INTEGER_OPSET} or more")
    if in_training(detector):
        detector = finish(detector)
    preprocessing = detector.preprocessing
    if image_size is not None:
        preprocessing = replace(preprocessing, size=tuple(image_size), shortest_edge=None, longest_edge=None)
    training = detector.training
    model = PlainDetector(detector.eval()).eval()
    try:
        with _quiet(), torch.no_grad(), writing(path) as temporary:
            graph = _to_onnx(model, _inputs(2 if dynamic_batch else 1, preprocessing.size), dynamic_batch, opset)
            graph.metadata_props[KEY] = describe(detector, preprocessing).to_json()
            onnx_ir.save(graph, temporary)
            share = _check(
                model, temporary, dynamic_batch, FLOAT_TOLERANCE if scheme_of(detector) is None else INTEGER_TOLERANCE
            )
    except _ExportError as error:
        raise UserError(f"{path}: {detector.config.model_type} {error}") from error
    finally:
        detector.train(training)
    if share < AGREEING:
        logger.warning("%s: only %.0f %% of its queries on random pixels are PyTorch's; evaluate the file", path, 100 * share)
    return path


def agreement(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor], head: str, tolerance: float) -> tuple[float, float]:
    """How far two answers (logits (B, N, C), boxes (B, N, 4)) are the same set of queries, in any order.

    Returns:
        The share of the queries whose counterpart (one to one, by least largest difference) differs by at most `tolerance` in
        every class probability and box coordinate, in the worst image; and the median of the largest differences there.
    """
    found = []
    for mine, other in zip(_rows(*ours, head), _rows(*theirs, head), strict=True):
        distance = cdist(mine, other, "chebyshev")
        matched = distance[linear_sum_assignment(distance)]
        found.append((float((matched <= tolerance).mean()), float(np.median(matched))))
    return min(found)


def _rows(logits: Tensor, boxes: Tensor, head: str) -> np.ndarray:
    probabilities = logits.softmax(-1) if head == "softmax" else logits.sigmoid()
    rows = torch.cat([probabilities, boxes], -1).float().cpu().numpy()
    return np.nan_to_num(rows, nan=9.0)  # far from any probability and coordinate


class _ExportError(Exception):
    """What a family cannot do, without the name of the file."""


def _inputs(images: int, size: tuple[int, int] | None, free_size: tuple[int, int] = FREE_SIZE) -> tuple[Tensor, ...]:
    """Random pixels, and without a fixed size a mask that pads the last image at the right and the bottom."""
    height, width = size or free_size
    pixels = torch.randn(images, 3, height, width, generator=torch.Generator().manual_seed(images))
    if size is not None:
        return (pixels,)
    mask = torch.ones(images, height, width, dtype=torch.int64)
    mask[-1, height * 3 // 4 :] = mask[-1, :, width * 3 // 4 :] = 0
    return pixels * mask[:, None], mask


def _to_onnx(model: PlainDetector, sample: tuple[Tensor, ...], dynamic_batch: bool, opset: int) -> onnx_ir.Model:
    from leandetr.quantization.operators import onnx_translations, store_integers

    free, free_size = torch.export.Dim.DYNAMIC, len(sample) == 2
    batch = {0: free} if dynamic_batch else {}
    shapes = (batch | ({2: free, 3: free} if free_size else {}), batch | {1: free, 2: free})
    device = next(model.parameters()).device
    inputs = tuple(tensor.to(device) for tensor in sample)
    try:
        with _symbolic_len(model):
            traced = torch.export.export(model, inputs, dynamic_shapes=shapes[: len(sample)], strict=False)
        program = torch.onnx.export(
            traced,
            inputs,
            dynamo=True,
            opset_version=opset,
            input_names=["pixel_values", "pixel_mask"][: len(sample)],
            output_names=["logits", "boxes"],
            custom_translation_table=onnx_translations(),
            optimize=False,
            verbose=False,
        )
    except Exception as error:  # the exporter wraps whatever went wrong inside the model
        raise _ExportError(f"cannot be exported at opset {opset}: {_root(error)}") from error
    # The exporter's own optimisation loses a node of box-refining Deformable DETR in its rewrite rules, and it keeps a Python
    # stack trace with every node, which outweighs the weights of a small model.
    common.InlinePass()(program.model)
    fold_constants(program.model)
    store_integers(program.model.graph)
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
    model = clean(program.model).model
    own_zero_points(model.graph)
    forget_types(model.graph)
    return model


def _check(model: PlainDetector, file: Path, dynamic_batch: bool, tolerance: float) -> float:
    """The smallest share of queries that agree with PyTorch, on other inputs than the file was traced with."""
    runtime = OnnxRuntime(file)
    size, device = runtime.preprocessing.size, next(model.parameters()).device
    counts = (1, 3) if dynamic_batch else (1,)
    sizes = [FREE_SIZE] if size else [FREE_SIZE, OTHER_SIZE]
    shares = []
    for sample in [_inputs(count, size, free_size) for count in counts for free_size in sizes]:
        try:
            found = runtime.run(*sample, *[None] * (2 - len(sample)))
        except Exception as error:  # ONNX Runtime's errors have no common class
            fixed = "; name a fixed image size" if size is None else ""
            shape = " x ".join(map(str, sample[0].shape))
            raise _ExportError(f"was exported, but ONNX Runtime cannot run it on pixels of {shape}{fixed}") from error
        expected = model(*[tensor.to(device) for tensor in sample])
        shares.append(agreement(expected, found, runtime.metadata.head, tolerance)[0])
    return min(shares)


@contextmanager
def _symbolic_len(model: PlainDetector) -> Iterator[None]:
    """RT-DETR takes its batch size from `len` of a tensor, which Python makes a plain number, and so a constant of the graph.

    In the model's own module `len` stays symbolic meanwhile; the other way, strict tracing, takes three times as long.
    """
    module = sys.modules[type(model.model).__module__]
    module.len = lambda value: value.shape[0] if isinstance(value, Tensor) else len(value)
    try:
        yield
    finally:
        del module.len


@contextmanager
def _quiet() -> Iterator[None]:
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
