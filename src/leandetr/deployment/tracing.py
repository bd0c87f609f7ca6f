"""What every export begins with: how photographs are prepared for the file, the pixels it is traced with, and silence."""

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

import torch
from torch import Tensor

from leandetr.deployment.end_to_end import EndToEnd
from leandetr.deployment.metadata import Metadata
from leandetr.deployment.pytorch import PlainDetector
from leandetr.detectors.create import check_size
from leandetr.detectors.detector import Detector
from leandetr.detectors.image_size import check_answers
from leandetr.detectors.preprocessing import resized_to
from leandetr.errors import UserError
from leandetr.structures import Preprocessing

# (height, width) at which a graph of free size is traced, and one at which it is checked besides
FREE_SIZE, OTHER_SIZE = (192, 256), (256, 224)
CHECKS = "TRANSFORMERS_DISABLE_TORCH_CHECK"


class ExportError(Exception):
    """What a family cannot do, without the name of the file."""


def preprocessing_for(detector: Detector, path: Path, image_size: tuple[int, int] | None, end_to_end: bool) -> Preprocessing:
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


def sample_of(images: int, metadata: Metadata, free_size: tuple[int, int] = FREE_SIZE) -> tuple[Tensor, ...]:
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


@contextmanager
def symbolic_len(model: PlainDetector | EndToEnd) -> Iterator[None]:
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


def root(error: BaseException) -> str:
    """The first line of the error that started it all."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
