"""Milliseconds of a training step, of the package that Python finds: before and after a change on one machine.

    python benchmarks/training_steps.py --out steps.json              # RT-DETRv2 with a ResNet-50, 640 px, batch 16
    git worktree add ../before REVISION
    PYTHONPATH=../before/src python benchmarks/training_steps.py --out before.json

On synthetic shapes and with untrained weights. `--quick` is the same at a tiny size, on a CPU too; its numbers say nothing.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback

from leandetr.data.coco import CocoDataset, class_map_of, find_split
from leandetr.data.shapes import write_shapes
from leandetr.data.transforms import eval_transform, train_transform
from leandetr.detectors.create import create
from leandetr.detectors.detector import Detector
from leandetr.distillation.distiller import Distiller
from leandetr.distillation.methods import build_terms
from leandetr.distillation.teacher import DetectorTeacher
from leandetr.quantization import LowBit
from leandetr.training.config import Training
from leandetr.training.trainer import DetectionTrainer
from leandetr.verbs.calibration import calibrated

PROFILED = 3  # steps
LISTED = 12  # operators


@dataclass(frozen=True)
class Size:
    """Of everything that is measured. student: the backbone of DETRDistill's. copies: of every training image, so that an epoch
    is long. warm: steps that are not counted."""

    side: int = 640
    backbone: str = "resnet50"
    student: str = "resnet18"
    overrides: dict[str, Any] = field(default_factory=dict)
    images: int = 64
    copies: int = 12
    val: int = 32
    batch: int = 16
    steps: int = 16
    warm: int = 12
    rounds: int = 40
    batches: tuple[int, ...] = (1, 8, 32)


QUICK = Size(
    side=64,
    backbone="test_resnet",
    student="test_resnet",
    overrides={"d_model": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "num_queries": 8, "encoder_in_channels": [64] * 3}
    | {"decoder_layers": 2, "encoder_hidden_dim": 32, "decoder_in_channels": [32] * 3},
    images=8,
    copies=2,
    val=2,
    batch=2,
    steps=3,
    warm=1,
    rounds=2,
    batches=(1, 2),
)


class Timer(TrainerCallback):
    """Seconds at the ends of the steps that are counted."""

    def __init__(self, warm: int) -> None:
        self.warm, self.marks = warm, dict[int, float]()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step in (self.warm, state.max_steps):
            self.marks[state.global_step] = now()


class FixedBatch(DetectionTrainer):
    """Trains on its first batch again and again, which is on the device."""

    def get_train_dataloader(self) -> Any:
        return [next(iter(super().get_train_dataloader()))] * self.args.max_steps


class Parts(FixedBatch):
    """Seconds of the parts of every step, each of which waits for the device. The update's and the trainer's own are the rest
    of a step."""

    def __init__(self, *arguments: Any) -> None:
        self.forwards, self.steps = list[float](), list[float]()
        super().__init__(*arguments)

    def compute_loss(self, *arguments: Any, **named: Any) -> Any:
        start = now()
        found = super().compute_loss(*arguments, **named)
        self.forwards.append(now() - start)
        return found

    def training_step(self, *arguments: Any, **named: Any) -> Tensor:
        start = now()
        found = super().training_step(*arguments, **named)
        self.steps.append(now() - start)
        return found


class Profiled(FixedBatch):
    """Its last steps are profiled."""

    def training_step(self, *arguments: Any, **named: Any) -> Tensor:
        if self.state.global_step == self.args.max_steps - PROFILED:
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
            self.profile = profile(activities=activities)
            now()
            self.profile.start()
        return super().training_step(*arguments, **named)


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def multiply(data: Path, copies: int) -> None:
    """Names every training image so many times, with files that are one."""
    file = data / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    images, objects = list(content["images"]), list(content["annotations"])
    for copied in range(1, copies):
        for image in images:
            name = f"{copied}-{image['file_name']}"
            os.link(data / "train" / image["file_name"], data / "train" / name)
            content["images"].append({**image, "id": image["id"] + copied * len(images), "file_name": name})
        for thing in objects:
            shifted = {"id": thing["id"] + copied * len(objects), "image_id": thing["image_id"] + copied * len(images)}
            content["annotations"].append({**thing, **shifted})
    file.write_text(json.dumps(content))


class Steps:
    """Detector and data of one size, and what a step of them costs."""

    def __init__(self, size: Size, folder: Path) -> None:
        self.size, self.folder = size, folder
        side = (size.side, size.side)
        self.data = write_shapes(folder / "data", size.images, size.val, side)
        multiply(self.data, size.copies)
        self.classes = class_map_of(find_split(self.data, "train"))
        self.detector = self.made(size.backbone)

    def made(self, backbone: str) -> Detector:
        torch.manual_seed(0)
        side = (self.size.side, self.size.side)
        return create("rt_detr_v2", self.classes, side, backbone, overrides=self.size.overrides)

    def trainer(
        self, module: nn.Module, kind: type[DetectionTrainer] = FixedBatch, **config: Any
    ) -> tuple[DetectionTrainer, Timer]:
        detector: Detector = getattr(module, "student", module)
        preprocessing, timer = detector.preprocessing, Timer(self.size.warm)
        transforms = train_transform(preprocessing, "ssd"), eval_transform(preprocessing)
        train, val = (
            CocoDataset(find_split(self.data, split), transform, detector.class_map)
            for split, transform in zip(("train", "val"), transforms, strict=True)
        )
        steps = self.size.warm + self.size.steps
        given = Training(max_steps=steps, batch_size=self.size.batch, warmup=0).model_copy(update=config)
        trainer = kind(module, train, val, given, self.folder / "training", [timer])
        trainer.args.save_strategy = "no"
        return trainer, timer

    def step(self, module: nn.Module, kind: type[DetectionTrainer] = FixedBatch, **config: Any) -> float:
        """Seconds of a training step."""
        trainer, timer = self.trainer(module, kind, **config)
        trainer.train()
        first, last = timer.marks[self.size.warm], timer.marks[self.size.warm + self.size.steps]
        return (last - first) / self.size.steps

    def parts(self, module: nn.Module) -> dict[str, float]:
        """Milliseconds of a step's parts, the device waited for after each; the memory that it takes at most."""
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        trainer, timer = self.trainer(module, Parts)
        assert isinstance(trainer, Parts)
        trainer.train()
        whole = (timer.marks[self.size.warm + self.size.steps] - timer.marks[self.size.warm]) / self.size.steps
        forward, step = (sum(times[self.size.warm :]) / self.size.steps for times in (trainer.forwards, trainer.steps))
        found = {"forward and loss": 1e3 * forward, "backward": 1e3 * (step - forward), "update": 1e3 * (whole - step)}
        if torch.cuda.is_available():
            found["memory"] = torch.cuda.max_memory_allocated() / 2**30
        return found

    def operators(self, module: nn.Module) -> dict[str, float]:
        """Milliseconds of a step on the device, or on the CPU where there is no other, of the operators that take most; and how
        many kernels a step launches, of how many milliseconds in all."""
        trainer, _ = self.trainer(module, Profiled)
        assert isinstance(trainer, Profiled)
        trainer.train()
        now()
        trainer.profile.stop()
        device = torch.cuda.is_available()
        times: Counter[str] = Counter()
        launches = 0
        for event in trainer.profile.key_averages():
            own = event.self_device_time_total if device else event.self_cpu_time_total
            if "launchKernel" in event.key.replace("LaunchKernel", "launchKernel"):
                launches += event.count
            if device and event.device_type.name == "CUDA":
                continue  # the kernels themselves: their time is their operator's
            times[event.key] += own
        found = {name: time / PROFILED / 1e3 for name, time in times.most_common(LISTED)}
        return found | {"all": times.total() / PROFILED / 1e3, "kernels": launches / PROFILED}

    def distiller(self) -> Distiller:
        """A small student and the detector as its teacher."""
        student, teacher = self.made(self.size.student), DetectorTeacher(copy.deepcopy(self.detector), self.detector)
        return Distiller(student, teacher, build_terms("detrdistill", student, teacher))

    def teacher_answer(self) -> float:
        """Seconds of a teacher's answer to the fixed batch."""
        trainer, _ = self.trainer(copy.deepcopy(self.detector))
        batch = trainer._prepare_inputs(trainer.get_train_dataloader()[0])
        teacher = DetectorTeacher(copy.deepcopy(self.detector).to(trainer.args.device), self.detector)
        for _ in range(self.size.warm):
            teacher(batch)
        start = now()
        for _ in range(self.size.steps):
            teacher(batch)
        return (now() - start) / self.size.steps

    def low_bit(self) -> Detector:
        """4-4-8."""
        return calibrated(copy.deepcopy(self.detector), self.data, LowBit(calibration_images=self.size.batch))


def measured(steps: Steps, detailed: bool = True) -> Iterator[tuple[str, Callable[[], dict[str, float]]]]:
    """What can be measured, what says most first: a name, and what gives its numbers (milliseconds, where no unit is named).
    detailed: of 4-4-8 training too, and of a step's parts and operators."""

    def step(make: Callable[[], nn.Module], kind: type[DetectionTrainer] = FixedBatch, **config: Any) -> Any:
        return lambda: {"": 1e3 * steps.step(make(), kind, **config)}

    def again() -> Detector:
        return copy.deepcopy(steps.detector)

    yield "step", step(again)
    yield "step in train", step(again, DetectionTrainer)
    if detailed:
        yield "of a step", lambda: steps.parts(again())
        yield "of a step's operators", lambda: steps.operators(again())
    yield "student's step", step(lambda: steps.made(steps.size.student))
    yield "teacher's answer", lambda: {"": 1e3 * steps.teacher_answer()}
    yield "DETRDistill step", step(steps.distiller)
    yield "float32 step", step(again, precision="float32")
    if detailed:
        yield "low-bit step", step(steps.low_bit)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="file for the numbers, JSON")
    parser.add_argument("--steps", type=int, help="steps that are counted")
    parser.add_argument("--quick", action="store_true", help="tiny, to see that it runs")
    parser.add_argument("--brief", action="store_true", help="without 4-4-8 training, parts and operators")
    options = parser.parse_args(arguments)
    size = QUICK if options.quick else Size()
    if options.steps:
        size = replace(size, steps=options.steps)
    with TemporaryDirectory() as folder:
        found: dict[str, Any] = {"size": asdict(size)}
        for name, ask in measured(Steps(size, Path(folder)), not options.brief):
            for part, value in ask().items():
                found[f"{name}: {part}" if part else name] = value
                print(f"{name} {part}: {value:.4g}", flush=True)
            options.out.write_text(json.dumps(found, indent=1) + "\n")  # what comes later may be cut off


if __name__ == "__main__":
    main()
