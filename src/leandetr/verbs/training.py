"""`train`, `distill`, `pretrain`."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from leandetr.data.classification import ClassificationDataset, is_image_folder, write_crops
from leandetr.data.splits import DataFolder
from leandetr.detectors.backbones import load_backbone_weights
from leandetr.detectors.checkpoints.load import load
from leandetr.detectors.detector import Detector
from leandetr.detectors.spec import NewBackbone, NewDetector
from leandetr.distillation.distiller import Distiller
from leandetr.distillation.methods import build_terms, prepare
from leandetr.distillation.spec import Teaching
from leandetr.errors import UserError
from leandetr.files import claiming, read_json
from leandetr.processes import say
from leandetr.quantization.config import LowBit
from leandetr.quantization.training.pretraining import round_backbone
from leandetr.structures import Preprocessing
from leandetr.training import classification
from leandetr.training.config import Training
from leandetr.verbs.calibration import spread_batches
from leandetr.verbs.data import Data, opened, split_of, state_of
from leandetr.verbs.fitting import build_student, finished_in, fit_detector, keep, open_teacher, said_of


def train(
    data: Data, model: NewDetector | str | Path, out: Path, training: Training | None = None, until: float = math.inf
) -> Detector:
    """Train a detector on `train` and keep the best by AP on `val` in `out`.

    Args:
        data: a folder in COCO's layout, or its splits.
        model: what to train; a name stands for `NewDetector.named`.
        until: a time of `time.monotonic()` at which a training that is not over stops with a checkpoint and OutOfTime.

    A training that was stopped or killed is continued when it is started again. Raises UserError for every fault of the input.
    """
    new, out, training, data = _spec(model), Path(out), training or Training(), opened(data)
    name, building = said_of(new)
    state = state_of(data, model=name, weights=new.weights)
    with claiming(out, ["train", data, name, building, training.model_dump()], state):
        if finished_in(out, state):
            return load(out)
        student = build_student(data, new, training.seed)
        return keep(fit_detector(student, data, training, out, until), out)


def distill(
    data: Data,
    teaching: Teaching,
    student: NewDetector | str | Path,
    out: Path,
    training: Training | None = None,
    until: float = math.inf,
) -> Detector:
    """As `train`, while the student learns from a teacher too."""
    new, out, training, data = _spec(student), Path(out), training or Training(), opened(data)
    name, building = said_of(new)
    terms = [teaching.method, teaching.weights, teaching.options]
    state = state_of(data, teacher=teaching.teacher, student=name, weights=new.weights)
    with claiming(out, ["distill", data, teaching.teacher, name, *terms, building, training.model_dump()], state):
        if finished_in(out, state):
            return load(out)
        pupil = build_student(data, new, training.seed)
        prepare(pupil, teaching)
        teacher = open_teacher(teaching.teacher, pupil)
        if teacher.changes and not training.ema:
            raise UserError(
                "the teacher self is the moving average of the weights, and training.ema is 0; give it a decay (0.999)"
            )
        module = Distiller(pupil, teacher, build_terms(teaching, pupil, teacher))
        if teacher.lacks:
            say(f"{teaching.teacher} has other classes than the data; {teaching.method} goes on without its logits")
        return keep(fit_detector(module, data, training, out, until, teaching.cache), out)


def pretrain(data: Data, backbone: NewBackbone, out: Path, bits: str | None = None, training: Training | None = None) -> float:
    """Train a backbone to classify images and keep it as `out/backbone.safetensors`, which `NewDetector` takes as `weights`.

    Args:
        data: a folder with train/CLASS/ and val/CLASS/, or detection data, whose boxes are cut out into `out/crops`.
        bits: of the scheme low-bit, for training in which layers are rounded; the kept weights are float all the same.

    Returns the best top-1 on `val`, in [0, 1]. A training that was killed is continued when it is started again. Raises
    UserError for every fault of the input.
    """
    out, training, size, data = Path(out), training or Training(), backbone.image_size, opened(data)
    if min(size) < 1:
        raise UserError(f"images of {size[0]} x {size[1]} cannot be; give --image-size two numbers of 1 or more")
    low_bit = None if bits is None else LowBit(bits=bits, part="backbone")
    for key in ("freeze", "gradient_checkpointing", "cache"):
        if getattr(training, key) is not None:
            raise UserError(f"training.{key} is for detectors; leave it out where a backbone is trained by itself")
    made_from = [backbone.name, size, backbone.weights, bits, backbone.set, training.model_dump()]
    state = state_of(data, weights=backbone.weights)
    with claiming(out, ["pretrain", data, *made_from], state):
        if finished_in(out, state, classification.WEIGHTS):
            return read_json(out / classification.RESULT)["top1"]
        described = classification.describe(backbone)
        if isinstance(data, DataFolder) and is_image_folder(data.place):
            folder = data.place
        else:
            folder = write_crops({split: split_of(data, split) for split in ("train", "val")}, out / "crops")
        preprocessing = Preprocessing(size=size, mean=described.mean, std=described.std)
        train_set, val_set = (ClassificationDataset(folder, split, preprocessing, training.seed) for split in ("train", "val"))
        torch.manual_seed(training.seed)
        classifier = classification.Classifier(described, train_set.names)
        if backbone.weights is not None:
            load_backbone_weights(classifier.backbone, described.config, backbone.weights)
        if low_bit is not None:
            batches = spread_batches(train_set, min(low_bit.calibration_images, len(train_set)))
            round_backbone(classifier.backbone, low_bit, (batch["pixel_values"] for batch in batches))
        return classification.pretrain(classifier, train_set, val_set, training, out, out.name)


def _spec(model: NewDetector | str | Path) -> NewDetector:
    return model if isinstance(model, NewDetector) else NewDetector.named(model)
