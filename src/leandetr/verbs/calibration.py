"""Quantizing with images of a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch.utils.data import Subset

from leandetr.data.batches import Loader
from leandetr.data.classification import ClassificationDataset
from leandetr.data.coco import CocoDataset
from leandetr.data.transforms import eval_transform
from leandetr.detectors.alignment import fit_alignment
from leandetr.detectors.detector import Detector
from leandetr.errors import UserError
from leandetr.machine import chosen_device
from leandetr.quantization.config import LowBit, Scheme, calibration_images
from leandetr.quantization.passes.calibrate import CalibrationImages
from leandetr.quantization.passes.reconstruct import reconstruct_grids
from leandetr.quantization.quantize import quantize as quantize_detector
from leandetr.quantization.training.finish import finish
from leandetr.structures import Batch, Preprocessing
from leandetr.verbs.data import Data, split_of

SchemeT = TypeVar("SchemeT", bound=Scheme)


def calibrated(detector: Detector, data: Data, config: Scheme) -> Detector:
    """The detector quantized, with images of `train` where the scheme needs them, all of them where there are fewer.

    It is calibrated on the chosen device, and is on the CPU afterwards.
    """
    config, batches = _with_images(detector, data, config)
    return quantize_detector(detector.to(chosen_device()), config, batches).cpu()


def reconstructed(detector: Detector, data: Data, config: LowBit) -> Detector:
    """The detector in few bits without a training: calibrated, then rounded by what it does to detections, and finished.

    It is so on the chosen device, and is on the CPU afterwards.
    """
    config, batches = _with_images(detector, data, config)
    quantized = quantize_detector(detector.to(chosen_device()), config, batches)
    reconstruct_grids(quantized, detector, CalibrationImages(batches, config.calibration_images, detector))
    return finish(quantized).cpu()


def _with_images(detector: Detector, data: Data, config: SchemeT) -> tuple[SchemeT, Iterable[Batch]]:
    """The scheme asking for no more images than `train` has, and these."""
    asked = calibration_images(config)
    if not asked:
        return config, ()
    dataset = CocoDataset(split_of(data, "train"), eval_transform(detector.preprocessing), detector.class_map)
    config = with_calibration(config, lambda own: min(own, len(dataset)))
    return config, spread_batches(dataset, min(asked, len(dataset)))


def asking(config: SchemeT, images: int, data: Data) -> SchemeT:
    """The scheme with so many calibration images in place of its own number. Raises UserError where `train` has fewer."""
    config = with_calibration(config, lambda _: images)
    if calibration_images(config):
        split = split_of(data, "train")
        there = len(CocoDataset(split, eval_transform(Preprocessing())))
        if there < images:
            raise UserError(f"{split.annotations} has {there} images, and calibration asks for {images}; ask for fewer")
    return config


def calibrate_alignment(detector: Detector, data: Data, images: int) -> None:
    """Choose scale and shift of a trained detector's new query alignment from images of `train`, see `fit_alignment`."""
    dataset = CocoDataset(split_of(data, "train"), eval_transform(detector.preprocessing), detector.class_map)
    batches = spread_batches(dataset, min(images, len(dataset)))
    device, training = chosen_device(), detector.training
    detector.to(device)

    def run() -> None:
        for batch in batches:
            detector.model(pixel_values=batch["pixel_values"].to(device), pixel_mask=batch["pixel_mask"].to(device))

    detector.eval()
    fit_alignment(detector.model, run)
    detector.train(training)


def with_calibration(config: SchemeT, images: Callable[[int], int]) -> SchemeT:
    """The scheme with `images` of its number of calibration images, and of its overrides' where they have any."""

    def changed(setting: Any) -> Any:
        own = getattr(setting, "calibration_images", None)
        return setting if own is None else replace(setting, calibration_images=images(own))

    overrides = {
        pattern: changed(value) if getattr(value, "calibration_images", 0) else value
        for pattern, value in config.overrides.items()
    }
    return changed(replace(config, overrides=overrides))


def spread_batches(dataset: CocoDataset | ClassificationDataset, images: int) -> Iterable[Batch]:
    """Batches of images spread evenly over a data set."""
    chosen = torch.linspace(0, len(dataset) - 1, images).round().long().tolist()
    return Loader(Subset(dataset, chosen), batch_size=8)
