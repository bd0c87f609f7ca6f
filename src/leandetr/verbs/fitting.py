"""What the verbs that train share: building a student, opening a teacher, fitting, and knowing what is finished."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from rich.console import Console
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from leandetr.data.coco import CocoDataset, class_map_of, collate
from leandetr.data.transforms import eval_transform, train_transform
from leandetr.detectors.checkpoints.load import load
from leandetr.detectors.create import create
from leandetr.detectors.detector import Detector
from leandetr.detectors.names import MODELS
from leandetr.detectors.teachers import TorchvisionDetector, load_torchvision, names_torchvision
from leandetr.distillation.distiller import Distiller
from leandetr.distillation.predictions import Predictions
from leandetr.errors import UserError, unknown
from leandetr.inputs import State
from leandetr.structures import ClassMap
from leandetr.training.config import Training
from leandetr.training.fit import fit, forget_checkpoints
from leandetr.verbs.data import Data, split_of


def finished_in(out: Path, state: State, product: str = "config.json") -> bool:
    """Whether a training is over: it writes its detector last. Says so, with what it was made from."""
    if not (Path(out) / product).exists():
        return False
    if PartialState().is_main_process:
        read = ", ".join(f"{what} ({of})" for what, of in state.items())
        said = f"{out} is finished already, and nothing that it was made from has changed since: {read}"
        Console(stderr=True, highlight=False).print(said, markup=False, soft_wrap=True)
    return True


def build_student(
    data: Data,
    model: str,
    image_size: tuple[int, int] | None,
    backbone: str | None,
    weights: str | None,
    overrides: Mapping[str, Any] | None,
    seed: int,
) -> Detector:
    torch.manual_seed(seed)  # what terms build beside a saved student is drawn too
    if model not in MODELS:
        if not Path(model).exists() and "/" not in model:
            raise unknown("model", model, MODELS)
        if backbone or weights or image_size:
            raise UserError(f"{model} has its size, backbone and weights: leave out those of a new model")
        return load(model, overrides)
    if image_size is None:
        raise UserError(f"a new {model} needs a size: add --image-size HEIGHT WIDTH")
    return create(model, class_map_of(split_of(data, "train")), image_size, backbone, weights, dict(overrides or {}))


def open_teacher(teacher: str | Path, class_map: ClassMap) -> Detector | TorchvisionDetector | Predictions:
    """What `distill` learns from, by its name; `class_map`: the student's classes, for a file of detections."""
    if str(teacher).endswith(".json"):
        return Predictions(Path(teacher), class_map)
    return load_torchvision(str(teacher)) if names_torchvision(teacher) else load(teacher)


def fit_detector(
    module: Detector | Distiller,
    detector: Detector,
    data: Data,
    training: Training,
    out: Path,
    until: float,
    cache_teacher: Path | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    finished: Callable[[Detector], Detector] | None = None,
) -> Detector:
    """Train; what is saved and returned is the best detector, after `finished`."""
    preprocessing, class_map = detector.preprocessing, detector.class_map
    augment = training.augment
    if augment == "auto":
        augment = "detr" if preprocessing.size is None else "ssd"
    train_split, transform = split_of(data, "train"), train_transform(preprocessing, augment)
    detections = module.detections if isinstance(module, Distiller) else None
    views = 1 if augment == "none" else training.views
    train_set = CocoDataset(train_split, transform, class_map, training.seed, detections, views)
    val_set = CocoDataset(split_of(data, "val"), eval_transform(preprocessing), class_map)
    if cache_teacher is not None:
        passes = training.passes(len(train_set), PartialState().num_processes)
        module.remember(train_set, cache_teacher, passes, batch_size=training.batch_size, workers=training.loader_workers())
    if isinstance(module, Distiller):
        module.check(DataLoader(train_set, training.batch_size, collate_fn=collate))
    best = fit(module, train_set, val_set, training, out / "training", out.name, until, callbacks)
    best = finished(best) if finished else best
    if PartialState().is_main_process:
        best.save(out)
        forget_checkpoints(out / "training")
    PartialState().wait_for_everyone()
    return best
