"""One training from start, or from where it was killed, to the best detector."""

from __future__ import annotations

import math
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import TrainerCallback

from leandetr.data.classification import ClassificationDataset
from leandetr.data.coco import CocoDataset
from leandetr.detectors.checkpoints.load import load
from leandetr.detectors.detector import Detector
from leandetr.errors import Stopped, UserError, reason
from leandetr.training.callbacks import LOG, EvaluateEvery, LogFile, ProgressBar, StopAt, TellEpoch
from leandetr.training.config import Training
from leandetr.training.trainer import AveragingTrainer, DetectionTrainer, last_checkpoint


class OutOfTime(Exception):
    """A training was stopped before its end; it goes on from its checkpoint when it is started again."""


def fit(
    module: nn.Module,
    train: CocoDataset,
    val: CocoDataset,
    config: Training,
    output: Path,
    title: str,
    until: float = math.inf,
    callbacks: Sequence[TrainerCallback] = (),
) -> Detector:
    """Train and return the best detector by AP on `val`.

    Args:
        module: a `Detector`, or a `Distiller` around one.
        train, val: the images, with the detector's own preprocessing in their transforms.
        output, title, until: see `run`, whose errors are raised.
        callbacks: more to happen around the steps; what they add to a log is written with it.
    """

    def make(usual: list[TrainerCallback]) -> DetectionTrainer:
        return DetectionTrainer(module, train, val, config, output, [*callbacks, *usual])

    run(make, train, config, output, title, until)
    return load(output / "best")


def run(
    make: Callable[[list[TrainerCallback]], AveragingTrainer],
    train: CocoDataset | ClassificationDataset,
    config: Training,
    output: Path,
    title: str,
    until: float = math.inf,
) -> AveragingTrainer:
    """Train and return the trainer; the best is in `output / "best"` afterwards.

    Args:
        make: callbacks -> the trainer.
        train: the training images, whose views follow from the epoch.
        output: where checkpoints, `log.jsonl` and the best go. A folder with checkpoints of the same training is resumed from
            and ends with the same weights as a training that was never interrupted.
        title: said beside the progress bar.
        until: a time of `time.monotonic()` at which to stop.

    Raises:
        OutOfTime: `until` came before the end; a checkpoint of the last step is in `output`.
        Stopped: SIGINT or SIGTERM came; likewise.
        UserError: a process that reads images was killed.
        Diverged: the loss or its gradient is not a number; the last checkpoint stays in `output`.
    """
    output.mkdir(parents=True, exist_ok=True)
    resume = last_checkpoint(output)
    if resume is None:
        (output / LOG).unlink(missing_ok=True)
    random.seed(config.seed)
    np.random.seed(config.seed)  # noqa: NPY002 - transformers draws denoising noise from the global generators
    torch.manual_seed(config.seed)
    bar = ProgressBar(title)
    stop = StopAt(until)
    trainer = make([TellEpoch(train), EvaluateEvery(config.evaluate_every), LogFile(output / LOG), stop, bar])
    try:
        with stop.at_signals():
            trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):  # PyTorch's word for one that was killed, mostly for want of memory
            raise
        if stop.signal is not None:  # it reached the whole group, as Ctrl-C does
            again = "the same command goes on from the last checkpoint"
            raise Stopped(f"{title}: stopped within a step; {again}", 128 + stop.signal) from error
        raise UserError(
            f"{title}: a process that reads images has ended ({reason(error)}); free some memory or set training.workers to "
            "fewer, and give the same command again"
        ) from error
    finally:
        bar.stop()
    trainer.accelerator.wait_for_everyone()
    where = f"{title}: stopped at step {trainer.state.global_step} of {trainer.state.max_steps}"
    if stop.signal is not None:
        raise Stopped(f"{where}; the same command goes on from here", 128 + stop.signal)
    if trainer.state.global_step < trainer.state.max_steps:
        raise OutOfTime(where)
    return trainer


def forget_checkpoints(output: Path) -> None:
    """Remove what is needed for resuming alone, once a training is over."""
    for path in output.glob("checkpoint-*"):
        shutil.rmtree(path)
