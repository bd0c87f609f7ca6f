"""What the verbs that train share: building a student, opening a teacher, fitting, and knowing what is finished."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from leandetr.data.batches import Loader
from leandetr.data.coco import CocoDataset, class_map_of
from leandetr.data.partition import Partition
from leandetr.data.transforms import eval_transform, train_transform
from leandetr.detectors.build import build
from leandetr.detectors.checkpoints.load import load
from leandetr.detectors.detector import Detector
from leandetr.detectors.image_size import explained
from leandetr.detectors.spec import NewDetector
from leandetr.detectors.teachers import load_torchvision, names_torchvision
from leandetr.distillation.average import AverageTeacher, names_average
from leandetr.distillation.distiller import Distiller
from leandetr.distillation.predictions import DetectionTeacher, Predictions
from leandetr.distillation.teacher import DetectorTeacher, Teacher
from leandetr.distillation.vision import VisionTeacher, names_vision_model
from leandetr.errors import UserError
from leandetr.inputs import State
from leandetr.processes import is_main, processes, say, wait
from leandetr.training.config import Training
from leandetr.training.fit import fit, forget_checkpoints
from leandetr.verbs.data import Data, split_of


def finished_in(out: Path, state: State, product: str = "config.json") -> bool:
    """Whether a training is over: it writes its detector last. Says so, with what it was made from."""
    if not (Path(out) / product).exists():
        return False
    read = ", ".join(f"{what} ({of})" for what, of in state.items())
    say(f"{out} is finished already, and nothing that it was made from has changed since: {read}")
    return True


def build_student(data: Data, new: NewDetector, seed: int) -> Detector:
    """The detector that a spec describes, for the classes of the data. Says what a checkpoint for other classes keeps."""
    torch.manual_seed(seed)  # what terms build beside a saved student is drawn too
    return build(new, class_map_of(split_of(data, "train")), say)


def said_of(new: NewDetector) -> tuple[Any, dict[str, Any]]:
    """What identifies a detector to be trained in an output folder's marker: its name, and what it is built from."""
    building = {"image_size": new.image_size, "backbone": new.backbone, "weights": new.weights, "overrides": new.set}
    return new.model or new.checkpoint, building | ({} if new.queries is None else {"queries": new.queries})


def open_teacher(source: str | Path, student: Detector) -> Teacher:
    """What a student learns from, by its name, see `Teaching`."""
    if names_average(source):
        return AverageTeacher(student)
    if str(source).endswith(".json"):
        return Predictions(Path(source), student.class_map)
    if names_vision_model(source):
        return VisionTeacher(str(source), student)
    if names_torchvision(source):
        return DetectionTeacher(load_torchvision(str(source)), student)
    return DetectorTeacher(load(source), student)


def fit_detector(
    module: Detector | Distiller,
    data: Data,
    training: Training,
    out: Path,
    until: float,
    cache: Path | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> Detector:
    """Train a detector, or a student with its teacher, and return the best. cache: of the teacher's answers."""
    distiller = module if isinstance(module, Distiller) else None
    detector = module.student if isinstance(module, Distiller) else module
    preprocessing, class_map = detector.preprocessing, detector.class_map
    augment = training.augment
    if augment == "auto":
        augment = "detr" if preprocessing.size is None else "ssd"
    train_split, transform = split_of(data, "train"), train_transform(preprocessing, augment)
    detections = distiller.teacher.detections if distiller else None
    views = 1 if augment == "none" else training.views
    if training.freeze is not None:
        detector.freeze(training.freeze)
    train_set = CocoDataset(train_split, transform, class_map, training.seed, detections, views)
    if distiller is None and train_set.annotations.crowd.all():
        raise UserError(f"{train_split.annotations} has no usable box to learn from; `leandetr data check` says what is wrong")
    _warn_of_crowds(train_set, detector)
    val_set = CocoDataset(split_of(data, "val"), eval_transform(preprocessing), class_map)
    if training.cache is not None:
        train_set.keep_decoded(training.cache)
        val_set.keep_decoded(training.cache)
    if isinstance(data, Partition) and is_main():
        data.write(out / "split.json")
    if cache is not None and distiller is not None:
        passes = training.passes(len(train_set), processes().num_processes)
        distiller.remember(train_set, cache, passes, batch_size=training.batch_size, workers=training.loader_workers())
    if distiller:
        distiller.check(Loader(train_set, training.batch_size))
    with explained(detector, preprocessing.size, out.name):
        return fit(module, train_set, val_set, training, out / "training", out.name, until, callbacks)


def _warn_of_crowds(train_set: CocoDataset, detector: Detector) -> None:
    """Say where an image has more objects than the detector can answer with."""
    config = detector.config
    queries = config.num_queries - getattr(config, "distillation_queries", 0)
    found = train_set.annotations
    of_image = np.repeat(np.arange(len(train_set)), np.diff(found.first))
    counts = np.bincount(of_image[~found.crowd], minlength=len(train_set))
    over = int((counts > queries).sum())
    if over:
        most = int(counts.argmax())
        say(
            f"warning: {over} training images have more objects than the detector has queries ({queries}), "
            f"{train_set.path(most)} the most ({counts[most]}); ask for --queries {counts[most]} or more"
        )


def keep(detector: Detector, out: Path) -> Detector:
    """Save what a training ended with, after which it is finished."""
    if is_main():
        detector.save(out)
        forget_checkpoints(out / "training")
    wait()
    return detector
