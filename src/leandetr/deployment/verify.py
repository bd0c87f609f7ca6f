"""An exported file held against PyTorch before it gets its name."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from leandetr.deployment.agreement import SureBoxes, agreement, in_words, sure_boxes
from leandetr.deployment.end_to_end import EndToEnd
from leandetr.deployment.file_runtime import FileRuntime
from leandetr.deployment.pytorch import PlainDetector
from leandetr.deployment.tracing import FREE_SIZE, OTHER_SIZE, ExportError, sample_of
from leandetr.heads import Head

logger = logging.getLogger(__name__)

# Of the boxes, below which a warning is given: where two encoder scores nearly tie, either engine may choose another query.
AGREEING = 0.95
# Largest difference of a class probability or box coordinate: of float arithmetic in another order; of values that such a
# difference puts on the next step of an integer grid, of ONNX Runtime's 8-bit arithmetic behind integer weights; of halves.
FLOAT_TOLERANCE, INTEGER_TOLERANCE = 1e-3, 1e-2


@torch.no_grad()
def verify(path: Path, model: PlainDetector | EndToEnd, runtime: FileRuntime, counts: Sequence[int]) -> None:
    """Warn where an engine answers random pixels otherwise than PyTorch: fewer than 95 % of the queries have a counterpart that
    differs by at most the tolerance of the file's arithmetic, and of the boxes with a score of 0.3 or more no larger share is
    found again.

    path: as the warning names the file. counts: of photographs in a call. Raises ExportError where the engine cannot run it.
    """
    exact = runtime.metadata.scheme is None and not runtime.metadata.half
    tolerance = FLOAT_TOLERANCE if exact else INTEGER_TOLERANCE
    share, sure = _compared(model, runtime, counts, tolerance)
    if share < AGREEING and sure.found <= AGREEING * sure.count:
        logger.warning("%s: %s; compare `leandetr evaluate` of both", path, in_words(share, sure, runtime.title))


def _compared(
    model: PlainDetector | EndToEnd, runtime: FileRuntime, counts: Sequence[int], tolerance: float
) -> tuple[float, SureBoxes]:
    """The smallest share of queries that agree with PyTorch, and all its sure boxes, on other inputs than the file was traced
    with."""
    metadata, device = runtime.metadata, next(model.parameters()).device
    free = metadata.end_to_end or metadata.preprocessing.size is None
    shares, sure = [], SureBoxes(0, 0)
    for count in counts:
        for size in (FREE_SIZE, OTHER_SIZE) if free else (FREE_SIZE,):
            sample = sample_of(count, metadata, size)
            try:
                if metadata.end_to_end:
                    found = _as_queries(runtime.run_end_to_end(*sample), size, len(metadata.class_map))
                else:
                    found = runtime.run(*sample, *[None] * (2 - len(sample)))
            except Exception as error:  # the engines' errors have no common class
                fixed = "; name a fixed image size" if metadata.preprocessing.size is None else ""
                shape = " x ".join(map(str, sample[0].shape))
                raise ExportError(f"was exported, but {runtime.title} cannot run it on pixels of {shape}{fixed}") from error
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
