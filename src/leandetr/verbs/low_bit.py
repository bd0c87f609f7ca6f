"""Training of the scheme low-bit, in one stage or two."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from leandetr.detectors.alignment import alignment_of
from leandetr.detectors.checkpoints.load import load
from leandetr.detectors.detector import Detector
from leandetr.distillation.distiller import Distiller
from leandetr.distillation.methods import build_terms
from leandetr.errors import UserError
from leandetr.inputs import State
from leandetr.quantization.config import LowBit
from leandetr.quantization.training.clipping import LogClipped
from leandetr.quantization.training.finish import finish, in_training
from leandetr.training.config import Training
from leandetr.verbs.calibration import calibrate_alignment, calibrated
from leandetr.verbs.data import Data
from leandetr.verbs.fitting import finished_in, fit_detector, open_teacher


@dataclass(frozen=True)
class LowBitTraining:
    """How a low-bit detector is trained.

    Args:
        training: the schedule of each stage.
        teacher: what it learns from beside its data, as in `distill`; the float detector itself can be it.
        method, term_weights, term_options: of the distillation, as in `distill`.
        stages: 2 trains with a quantized backbone and a float encoder and decoder first (Q-DETR, section 2.4), in
            `<out>/stage-1`, and then, from there, all of it.
        stage_one: the folder that such a first stage has left, in place of one.
    """

    training: Training
    teacher: str | Path | None = None
    method: str = "drd"
    term_weights: Mapping[str, float] = field(default_factory=dict)
    term_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    stages: int = 1
    stage_one: Path | None = None


def train_low_bit(
    student: Detector, data: Data, config: LowBit, out: Path, plan: LowBitTraining, until: float, state: State
) -> Detector:
    if finished_in(out, state):
        return load(out)
    if plan.stage_one is not None:
        student = _first_stage(plan.stage_one, student)
    elif plan.stages == 2:
        first = out / "stage-1"
        if not (first / "config.json").exists():
            _train_stage(student, data, replace(config, part="backbone"), first, plan, until)
        student = load(first)
    return _train_stage(student, data, config, out, plan, until, finish)


def _train_stage(
    student: Detector,
    data: Data,
    config: LowBit,
    out: Path,
    plan: LowBitTraining,
    until: float,
    finished: Callable[[Detector], Detector] | None = None,
) -> Detector:
    methods, guide = plan.method.split(","), None
    torch.manual_seed(plan.training.seed)
    if plan.teacher is not None:
        guide = open_teacher(plan.teacher, student.class_map)
        # what terms build into the student, such as aligned queries, has to be there when the grids are calibrated
        aligned = alignment_of(student.config)
        build_terms(methods, student, guide, plan.term_weights, plan.term_options)
        if alignment_of(student.config) != aligned:
            calibrate_alignment(student, data, config.calibration_images)
    quantized = calibrated(student, data, config)
    module = quantized
    if guide is not None:
        terms = build_terms(methods, quantized, guide, plan.term_weights, plan.term_options)
        module = Distiller(quantized, guide, terms)
    clipped = LogClipped(quantized)
    return fit_detector(module, quantized, data, plan.training, out, until, callbacks=[clipped], finished=finished)


def _first_stage(folder: Path, student: Detector) -> Detector:
    """The detector that a first stage has left. UserError where it is none, or one of another architecture or other classes."""
    first = load(folder)
    if _layers(first) != _layers(student) or first.config.model_type != student.config.model_type:
        raise UserError(
            f"{folder} is of another architecture ({first.config.model_type}) than the model ({student.config.model_type}); "
            "name a first stage that was trained from it"
        )
    if first.class_map != student.class_map:
        raise UserError(f"{folder} has other classes than the model; name a first stage that was trained from it")
    if not in_training(first):
        raise UserError(f"{folder} is no first stage; name the folder stage-1 that a training in two stages leaves")
    return first


def _layers(detector: Detector) -> dict[str, torch.Size]:
    kinds = torch.nn.Linear | torch.nn.Conv2d
    return {name: layer.weight.shape for name, layer in detector.model.named_modules() if isinstance(layer, kinds)}
