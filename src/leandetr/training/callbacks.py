"""What happens around the training steps: epochs told to the data, evaluation, a log file, a progress bar."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from leandetr.data.classification import ClassificationDataset
from leandetr.data.coco import CocoDataset
from leandetr.detectors.detector import Detector
from leandetr.errors import Stopped
from leandetr.files import errors_of_writing
from leandetr.processes import processes
from leandetr.training.ema import MovingAverage

LOG = "log.jsonl"
#: logged number by which the best is kept -> its name
MEASURES = {"eval_ap": "AP", "eval_top1": "top-1"}
#: share of the loss above which a distillation term drowns the rest
ALONE = 0.99


class TellEpoch(TrainerCallback):
    """The training set augments by (seed, epoch, image): tell it the epoch."""

    def __init__(self, dataset: CocoDataset | ClassificationDataset) -> None:
        self.dataset = dataset

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.dataset.set_epoch(int(state.epoch or 0))


class UpdateAverage(TrainerCallback):
    """Move the averaged weights after every optimiser step."""

    def __init__(self, average: MovingAverage) -> None:
        self.average = average

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.average.update()


class EvaluateEvery(TrainerCallback):
    """Evaluate after every n-th epoch and at the end."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        last = state.global_step >= state.max_steps
        if not (last or _whole(state.epoch)):
            control.should_save = False  # stopped within an epoch, with a checkpoint
            return
        control.should_evaluate = last or round(state.epoch) % self.epochs == 0
        control.should_save = True
        control.should_log = True


class StopAt(TrainerCallback):
    """Stop with a checkpoint at a time of `time.monotonic()`, or once a signal asks for it, at whatever step that is.

    signal: that asked. A second one ends the process at once.
    """

    def __init__(self, until: float) -> None:
        self.until = until
        self.signal: int | None = None

    @contextmanager
    def at_signals(self) -> Iterator[None]:
        """While the block runs, SIGINT and SIGTERM are heeded at the end of a step; not one that the process was started to
        ignore, as a shell's `&` does. Not where several processes train, which would stop at different steps, and not in
        another thread than the first, which gets none."""
        if processes().num_processes > 1 or threading.current_thread() is not threading.main_thread():
            yield
            return
        heeded = [one for one in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(one) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self._ask) for number in heeded}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is not None:
            raise Stopped("stopped within a step; the same command goes on from the last checkpoint", 128 + number)
        self.signal, self.until = number, -math.inf

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if time.monotonic() >= self.until and state.global_step < state.max_steps:
            control.should_training_stop = True
            control.should_save = not _whole(state.epoch)  # the end of an epoch is saved anyway


class KeepEpochs(TrainerCallback):
    """After chosen epochs, counted from 1, the detector is kept as `epoch-N` under `folder`, with its averaged weights: what
    analyses follow a training by. An epoch that is repeated after a kill writes the same again."""

    def __init__(self, detector: Detector, average: MovingAverage | None, epochs: Collection[int], folder: Path) -> None:
        self.detector, self.average, self.epochs, self.folder = detector, average, epochs, folder

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if _whole(state.epoch) and round(state.epoch) in self.epochs and args.should_save:
            with self.average.applied() if self.average else nullcontext():
                self.detector.save(self.folder / f"epoch-{round(state.epoch)}")


class LogFile(TrainerCallback):
    """One JSON object a line: losses, rates, terms, AP. A resumed training goes on at the end of the same file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if state.is_world_process_zero:
            with errors_of_writing(self.path), self.path.open("a+b") as file:
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    if file.read() != b"\n":  # a kill cut the line
                        file.write(b"\n")
                file.write(json.dumps({"step": state.global_step, **(logs or {})}).encode() + b"\n")


def ap_by_epoch(output: Path) -> dict[int, float]:
    """AP after every evaluated epoch of a training whose log file is in `output`; {} where nothing was evaluated. Lines that a
    kill has cut are left out."""
    file, found = output / LOG, {}
    for line in file.read_bytes().splitlines() if file.exists() else ():
        try:
            logs = json.loads(line)
        except ValueError:
            continue
        if "eval_ap" in logs:  # a resumed training evaluates an epoch again where it was killed before the checkpoint
            found[round(logs["epoch"])] = logs["eval_ap"]
    return found


class ProgressBar(TrainerCallback):
    """Steps done, loss, best AP, time passed and time left, on stderr; a line an epoch where stderr is no terminal. Says once,
    in the first epoch, that a distillation term is nearly all of the loss."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.console = Console(stderr=True)
        self.progress: Progress | None = None
        self.warned = False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[said]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.progress.add_task(self.title, total=state.max_steps, completed=state.global_step, said="")
        self.progress.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.progress:
            self.progress.update(self.task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if self.progress is None or logs is None:
            return
        if state.epoch <= 1 and not self.warned:
            self._warn(logs)
        loss = next((row["loss"] for row in reversed(state.log_history) if "loss" in row), None)
        said = f"loss {loss:.3f}" if loss is not None else ""
        measured = next(((word, logs[name]) for name, word in MEASURES.items() if name in logs), None)
        if measured:
            said += f"  {measured[0]} {_shown(measured[1])} (best {_shown(state.best_metric)})"
            if not self.console.is_terminal:
                epoch = f"epoch {state.epoch:.0f}/{state.num_train_epochs}"
                self.console.print(
                    f"{self.title}: {epoch}, step {state.global_step}/{state.max_steps}, {said}", highlight=False
                )
        self.progress.update(self.task, said=said)

    def _warn(self, logs: dict[str, float]) -> None:
        for key, share in logs.items():
            term = key.removeprefix("share/")
            if term not in (key, "detection") and share > ALONE:
                self.warned = True
                self.console.print(
                    f"{self.title}: warning: the term {term} is {share:.1%} of the loss, and hardly anything else is learned; "
                    "lower its weight",
                    highlight=False,
                    soft_wrap=True,
                )

    def stop(self) -> None:
        """Leave the terminal as it was, however the training ended."""
        if self.progress:
            self.progress.stop()
            self.progress = None


def _shown(measure: float | None) -> str:
    """COCO's -1 is no AP: there were no boxes to find."""
    return "–" if measure is None or measure < 0 else f"{measure:.3f}"


def _whole(epoch: float) -> bool:
    """Whether an epoch is over; the last one may be cut short by max_steps."""
    return math.isclose(epoch, round(epoch), abs_tol=1e-6)
