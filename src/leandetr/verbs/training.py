"""`train`, `distill`, `pretrain`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from leandetr.data.classification import ClassificationDataset, is_image_folder, write_crops
from leandetr.detectors.backbones import load_backbone_weights
from leandetr.detectors.checkpoints.load import load
from leandetr.detectors.detector import Detector
from leandetr.distillation.distiller import Distiller
from leandetr.distillation.methods import build_terms
from leandetr.errors import UserError
from leandetr.files import claiming, read_json
from leandetr.quantization.config import LowBit
from leandetr.quantization.training.pretraining import round_backbone
from leandetr.structures import Preprocessing
from leandetr.training import classification
from leandetr.training.config import Training
from leandetr.verbs.calibration import spread_batches
from leandetr.verbs.data import Data, split_of, state_of
from leandetr.verbs.fitting import build_student, finished_in, fit_detector, open_teacher


def train(
    data: Data,
    model: str,
    out: Path,
    image_size: tuple[int, int] | None = None,
    backbone: str | None = None,
    weights: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    training: Training | None = None,
    until: float = math.inf,
) -> Detector:
    """Train a detector on `train` and keep the best by AP on `val` in `out`.

    Args:
        data: a folder in COCO's layout, or its splits.
        model: a short name of `leandetr models`, or a saved detector or hub id to train further.
        image_size, backbone, weights, overrides: of a new detector, see `create`.
        until: a time of `time.monotonic()` at which a training that is not over stops with a checkpoint and OutOfTime.

    A training that was stopped or killed is continued when it is started again. Raises UserError for every fault of the input.
    """
    training = training or Training()
    building = {"image_size": image_size, "backbone": backbone, "weights": weights, "overrides": overrides or {}}
    state = state_of(data, model=model, weights=weights)
    with claiming(out, ["train", data, model, building, training.model_dump()], state):
        if finished_in(out, state):
            return load(out)
        student = build_student(data, model, **building, seed=training.seed)
        return fit_detector(student, student, data, training, Path(out), until)


def distill(
    data: Data,
    teacher: str | Path,
    student: str,
    out: Path,
    method: str = "logits",
    term_weights: Mapping[str, float] | None = None,
    term_options: Mapping[str, Mapping[str, Any]] | None = None,
    image_size: tuple[int, int] | None = None,
    backbone: str | None = None,
    weights: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    training: Training | None = None,
    until: float = math.inf,
    cache_teacher: Path | None = None,
) -> Detector:
    """As `train`, while learning from `teacher` by one or more methods, joined by commas.

    teacher: a saved detector or hub id; for methods that learn from detections alone also a detector of torchvision (NAME or
    NAME:FILE, see `load_torchvision`), or a JSON in COCO's results format of the training images.
    term_weights: weight of a term in place of the method's own. term_options: a term's options by name, {"logits": {"stages":
    "last"}}.
    cache_teacher: folder in which the teacher's answers are kept, so that later epochs and trainings need no teacher; the
    training's views must come again, see `Training.views`.
    """
    training = training or Training()
    building = {"image_size": image_size, "backbone": backbone, "weights": weights, "overrides": overrides or {}}
    terms = [method, term_weights, term_options]
    state = state_of(data, teacher=teacher, student=student, weights=weights)
    with claiming(out, ["distill", data, teacher, student, *terms, building, training.model_dump()], state):
        if finished_in(out, state):
            return load(out)
        pupil = build_student(data, student, **building, seed=training.seed)
        guide = open_teacher(teacher, pupil.class_map)
        terms = build_terms(method.split(","), pupil, guide, term_weights or {}, term_options or {})
        return fit_detector(Distiller(pupil, guide, terms), pupil, data, training, Path(out), until, cache_teacher)


def pretrain(
    data: Data,
    backbone: str,
    out: Path,
    image_size: tuple[int, int],
    weights: str | None = None,
    bits: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    training: Training | None = None,
) -> float:
    """Train a backbone to classify images and keep it as `out/backbone.safetensors`, which `train` takes as `weights`.

    Args:
        data: a folder with train/CLASS/ and val/CLASS/, or detection data, whose boxes are cut out into `out/crops`.
        backbone: any that `create` takes with weights.
        image_size: (height, width) that images are squeezed to.
        weights: to start from, as those of a new detector; random by default.
        bits: of the scheme low-bit, for training in which layers are rounded; the kept weights are float all the same.
        overrides: of the backbone's configuration.

    Returns the best top-1 on `val`, in [0, 1]. A training that was killed is continued when it is started again. Raises
    UserError for every fault of the input.
    """
    training = training or Training()
    if min(image_size) < 1:
        raise UserError(f"images of {image_size[0]} x {image_size[1]} cannot be; give --image-size two numbers of 1 or more")
    low_bit = None if bits is None else LowBit(bits=bits, part="backbone")
    state = state_of(data, weights=weights)
    made_from = ["pretrain", data, backbone, image_size, weights, bits, overrides or {}, training.model_dump()]
    with claiming(out, made_from, state):
        if finished_in(out, state, classification.WEIGHTS):
            return read_json(Path(out) / classification.RESULT)["top1"]
        described = classification.describe(backbone, image_size, dict(overrides or {}))
        folder = data
        if isinstance(data, Mapping) or not is_image_folder(data):
            folder = write_crops({split: split_of(data, split) for split in ("train", "val")}, Path(out) / "crops")
        preprocessing = Preprocessing(size=tuple(image_size), mean=described.mean, std=described.std)
        train_set, val_set = (ClassificationDataset(folder, split, preprocessing, training.seed) for split in ("train", "val"))
        torch.manual_seed(training.seed)
        classifier = classification.Classifier(described, train_set.names)
        if weights is not None:
            load_backbone_weights(classifier.backbone, described.config, weights)
        if low_bit is not None:
            batches = spread_batches(train_set, min(low_bit.calibration_images, len(train_set)), classification.collate)
            round_backbone(classifier.backbone, low_bit, (batch["pixel_values"] for batch in batches))
        return classification.pretrain(classifier, train_set, val_set, training, Path(out), Path(out).name)
