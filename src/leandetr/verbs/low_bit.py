"""Training of the scheme low-bit, in one stage or two.

What the terms learn beside the student, such as adapters of its width to the teacher's, is kept from the first stage to the
second: `stage-1/adapters.safetensors`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import model_validator
from safetensors.torch import load_file, save_file
from torch import nn

from leandetr.checked import Checked
from leandetr.detectors.alignment import alignment_of
from leandetr.detectors.checkpoints.load import load
from leandetr.detectors.detector import Detector
from leandetr.distillation.distiller import Distiller
from leandetr.distillation.methods import build_terms, prepare
from leandetr.distillation.spec import Distillation, Teaching
from leandetr.errors import UserError
from leandetr.files import writing
from leandetr.inputs import State
from leandetr.processes import is_main
from leandetr.quantization.config import LowBit
from leandetr.quantization.training.clipping import LogClipped
from leandetr.quantization.training.finish import finish, in_training
from leandetr.training.config import Training
from leandetr.verbs.calibration import calibrate_alignment, calibrated
from leandetr.verbs.data import Data
from leandetr.verbs.fitting import finished_in, fit_detector, keep, open_teacher

ADAPTERS = "adapters.safetensors"


class LowBitTraining(Checked):
    """How a low-bit detector is trained.

    Attributes:
        training: the schedule of each stage.
        teaching: what it learns from beside its data; the float detector itself can be the teacher.
        stages: 2 trains with a quantized backbone and a float encoder and decoder first (Q-DETR, section 2.4), in
            `OUT/stage-1`, and then, from there, all of it.
        stage_one: the folder that such a first stage has left, in place of one.
    """

    training: Training
    teaching: Teaching | None = None
    stages: Literal[1, 2] = 1
    stage_one: Path | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.stage_one is not None and self.stages == 2:
            raise ValueError("stage_one is a first stage and stages: 2 trains one; leave out either")
        if self.teaching is not None and self.teaching.cache is not None:
            raise ValueError("teaching.cache: low-bit training keeps no answers; leave it out")
        return self

    @property
    def teacher(self) -> str | Path | None:
        return None if self.teaching is None else self.teaching.teacher

    def said(self) -> dict[str, Any]:
        """What identifies it in an output folder's marker."""
        distillation = self.teaching or Distillation(method="drd")
        return {
            "training": self.training.model_dump(),
            "teacher": self.teacher,
            "method": distillation.method,
            "term_weights": distillation.weights,
            "term_options": distillation.options,
            "stages": self.stages,
            "stage_one": self.stage_one,
        }


def train_low_bit(
    student: Detector, data: Data, config: LowBit, out: Path, plan: LowBitTraining, until: float, state: State
) -> Detector:
    """One or two stages of training around trainable grids, saved in `out` with its integers; an interrupted one goes on.

    until: `time.monotonic()` at which it stops, to go on another time.
    """
    if finished_in(out, state):
        return load(out)
    first = plan.stage_one
    if first is not None:
        student = _first_stage(first, student)
    elif plan.stages == 2:
        first = out / "stage-1"
        if not (first / "config.json").exists():
            module = _started(student, data, replace(config, part="backbone"), plan)
            best = _fitted(module, data, plan, first, until)
            if isinstance(module, Distiller):
                _keep_adapters(module.terms, first)
            keep(best, first)
        student = load(first)
    module = _started(student, data, config, plan)
    if isinstance(module, Distiller) and first is not None:
        _take_adapters(module.terms, first)
    return keep(finish(_fitted(module, data, plan, out, until)), out)


def _started(student: Detector, data: Data, config: LowBit, plan: LowBitTraining) -> Detector | Distiller:
    """A student at the start of a stage: with calibrated grids, and with its teacher where it has one."""
    torch.manual_seed(plan.training.seed)
    if plan.teaching is None:
        return calibrated(student, data, config)
    teacher, aligned = open_teacher(plan.teaching.teacher, student), alignment_of(student.config)
    prepare(student, plan.teaching)  # what is inside the student has to be there when its grids are calibrated
    if alignment_of(student.config) != aligned:
        calibrate_alignment(student, data, config.calibration_images)
    quantized = calibrated(student, data, config)
    return Distiller(quantized, teacher, build_terms(plan.teaching, quantized, teacher))


def _fitted(module: Detector | Distiller, data: Data, plan: LowBitTraining, out: Path, until: float) -> Detector:
    clipped = LogClipped(module.student if isinstance(module, Distiller) else module)
    return fit_detector(module, data, plan.training, out, until, callbacks=[clipped])


def _keep_adapters(terms: nn.Module, folder: Path) -> None:
    """Save what the terms have learned, as the last step left it."""
    state = {name: value.detach().cpu().contiguous() for name, value in terms.state_dict().items()}
    if state and is_main():
        with writing(folder / ADAPTERS) as temporary:
            save_file(state, temporary)


def _take_adapters(terms: nn.Module, folder: Path) -> None:
    """Give terms what a first stage has left of them; those of another method or another teacher's width begin anew."""
    own, file = terms.state_dict(), Path(folder) / ADAPTERS
    if file.exists():
        kept = load_file(file)
        fitting = {name: value for name, value in kept.items() if name in own and own[name].shape == value.shape}
        terms.load_state_dict(own | fitting)


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
