"""What a GPU does: one run, one JSON and one table in Markdown, within eight minutes.

    python benchmarks/gpu.py --out runs/gpu           # RT-DETRv2 with a ResNet-50, 640 px, batch 16, in bfloat16
    python benchmarks/gpu.py --out runs/quick --quick # the same at a tiny size, on a CPU too; its numbers say nothing

Measured, on synthetic shapes that it draws itself and with untrained weights:

    reading       images a second from files to batches on the device, with all the workers that `train` takes
    step          milliseconds of a training step on one batch that is there, and of the same in `train`, which reads its images
    DETRDistill   a step with a teacher of the same size, over a step without
    low-bit       a step of 4-4-8 training, over a step of float training
    evaluation    images a second of `evaluate`, PyTorch
    engines       latency and throughput by batch of every engine that is installed

What fails is a row with its error, and the rest is measured all the same. What there is no time for is said to be left out.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from leandetr.data.coco import CocoDataset, class_map_of, find_split
from leandetr.data.shapes import write_shapes
from leandetr.data.transforms import eval_transform, train_transform
from leandetr.deployment.benchmark import environment, measure
from leandetr.deployment.engines import ENGINES
from leandetr.deployment.onnx import export_onnx
from leandetr.deployment.pytorch import PyTorchRuntime
from leandetr.deployment.runtimes import open_runtime
from leandetr.detectors.create import create
from leandetr.detectors.detector import Detector
from leandetr.distillation.distiller import Distiller
from leandetr.distillation.methods import build_terms
from leandetr.distillation.teacher import DetectorTeacher
from leandetr.files import write_json, write_text
from leandetr.machine import chosen_device, name_of
from leandetr.quantization import LowBit
from leandetr.training.config import Training
from leandetr.training.trainer import DetectionTrainer
from leandetr.verbs import evaluate_runtime
from leandetr.verbs.calibration import calibrated

MINUTES = 6.0


@dataclass(frozen=True)
class Size:
    """Of everything that is measured. warm: steps that are not counted."""

    side: int = 640
    backbone: str = "resnet50"
    overrides: dict[str, Any] = field(default_factory=dict)
    images: int = 512
    val: int = 128
    batch: int = 16
    steps: int = 30
    warm: int = 10
    rounds: int = 40
    batches: tuple[int, ...] = (1, 8, 32)


QUICK = Size(
    side=64,
    backbone="test_resnet",
    overrides={"d_model": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "num_queries": 8, "encoder_in_channels": [64] * 3}
    | {"decoder_layers": 2, "encoder_hidden_dim": 32, "decoder_in_channels": [32] * 3},
    images=8,
    val=2,
    batch=2,
    steps=1,
    warm=1,
    rounds=2,
    batches=(1, 2),
)


class Timer(TrainerCallback):
    """Seconds of the steps after the first `warm`."""

    def __init__(self, warm: int) -> None:
        self.warm, self.marks = warm, dict[int, float]()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step in (self.warm, state.max_steps):
            self.marks[state.global_step] = now()


class FixedBatch(DetectionTrainer):
    """Trains on its first batch again and again, which is on the device."""

    def get_train_dataloader(self) -> Any:
        return [next(iter(super().get_train_dataloader()))] * self.args.max_steps


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Bench:
    """Detector, data and rows of one run."""

    def __init__(self, size: Size, folder: Path, until: float) -> None:
        self.size, self.folder, self.until, self.device = size, folder, until, chosen_device()
        side = (size.side, size.side)
        self.data = write_shapes(folder / "data", size.images, size.val, side)
        torch.manual_seed(0)
        classes = class_map_of(find_split(self.data, "train"))
        self.detector = create("rt_detr_v2", classes, side, size.backbone, overrides=size.overrides)
        self.rows: list[dict[str, Any]] = []
        self.float_step: float | None = None

    def trainer(self, module: nn.Module, kind: type[DetectionTrainer] = FixedBatch) -> tuple[DetectionTrainer, Timer]:
        detector: Detector = getattr(module, "student", module)
        preprocessing, timer = detector.preprocessing, Timer(self.size.warm)
        transforms = train_transform(preprocessing, "ssd"), eval_transform(preprocessing)
        train, val = (
            CocoDataset(find_split(self.data, split), transform, detector.class_map)
            for split, transform in zip(("train", "val"), transforms, strict=True)
        )
        config = Training(max_steps=self.size.warm + self.size.steps, batch_size=self.size.batch, warmup=0)
        trainer = kind(module, train, val, config, self.folder / "training", [timer])
        trainer.args.save_strategy = "no"
        return trainer, timer

    def step(self, module: nn.Module, kind: type[DetectionTrainer] = FixedBatch) -> float:
        """Seconds of a training step."""
        trainer, timer = self.trainer(module, kind)
        trainer.train()
        first, last = timer.marks[self.size.warm], timer.marks[self.size.warm + self.size.steps]
        return (last - first) / self.size.steps

    def add(self, what: str, value: float, unit: str) -> None:
        self.rows.append({"what": what, "value": value, "unit": unit})

    def reading(self) -> None:
        trainer, _ = self.trainer(copy.deepcopy(self.detector), DetectionTrainer)
        loader = trainer.get_train_dataloader()
        for _ in loader:  # the workers start
            pass
        start = now()
        batches = sum(1 for _ in range(2) for _ in loader)
        self.add("reading", batches * self.size.batch / (now() - start), "images/s")

    def steps(self) -> None:
        self.float_step = self.step(copy.deepcopy(self.detector))
        self.add("step, fixed batch", 1e3 * self.float_step, "ms")
        self.add("step in train", 1e3 * self.step(copy.deepcopy(self.detector), DetectionTrainer), "ms")

    def ratio(self, what: str, module: nn.Module) -> None:
        """Of a step, to the float step of the student alone."""
        step = self.step(module)
        self.add(f"{what} step", 1e3 * step, "ms")
        if self.float_step is not None:
            self.add(f"{what} step over a float one", step / self.float_step, "x")

    def distillation(self) -> None:
        student, teacher = copy.deepcopy(self.detector), DetectorTeacher(copy.deepcopy(self.detector), self.detector)
        self.ratio("DETRDistill", Distiller(student, teacher, build_terms("detrdistill", student, teacher)))

    def low_bit(self) -> None:
        self.ratio("low-bit", calibrated(copy.deepcopy(self.detector), self.data, LowBit(calibration_images=self.size.batch)))

    def evaluation(self) -> None:
        split, runtime = find_split(self.data, "val"), PyTorchRuntime(copy.deepcopy(self.detector).to(self.device))
        evaluate_runtime(runtime, split)
        start = now()
        evaluate_runtime(runtime, split)
        self.add("evaluation", self.size.val / (now() - start), "images/s")

    def engines(self) -> None:
        """All engines on one detector; those of the CPU with single images where there is a GPU. The row of one that is not
        installed says so."""
        self.detector.save(self.folder / "float")
        graph = export_onnx(self.detector, self.folder / "float.onnx")
        split = find_split(self.data, "val")
        for engine in ENGINES:
            source = self.folder / "float" if engine.startswith("pytorch") else graph
            if self.over(engine):
                continue
            with self.noted(engine):
                runtime = open_runtime(source, engine=engine, device=self.device)
                for batch in self.size.batches if runtime.device.type == self.device.type else (1,):
                    (found,) = measure([runtime], split, self.size.rounds, batch=batch)
                    where = f"{engine}, {found['device']}, batch {batch}"
                    self.add(where, found["latency_ms"], "ms")
                    self.add(where, found["images_per_second"], "images/s")

    def over(self, what: str) -> bool:
        """Whether there is no time left to begin something, which is then a row."""
        late = time.monotonic() > self.until
        if late:
            self.rows.append({"what": what, "error": "left out: no time"})
        return late

    @contextmanager
    def noted(self, what: str) -> Iterator[None]:
        """What goes wrong is a row."""
        try:
            yield
        except Exception as error:  # the rest of the run is worth more
            line = (str(error).strip().splitlines() or [""])[0]
            self.rows.append({"what": what, "error": f"{type(error).__name__}: {line}"})


def table(found: dict[str, Any]) -> str:
    """The rows in Markdown."""
    rows = [
        f"| {row['what']} | {row['value']:.4g} | {row['unit']} |"
        if "value" in row
        else f"| {row['what']} | – | {row['error']} |"
        for row in found["rows"]
    ]
    about = ", ".join(f"{name}: {value}" for name, value in found["environment"].items())
    size = found["size"]
    of = f"RT-DETRv2, {size['backbone']}, {size['side']} px, batch {size['batch']}, {found['device']}"
    return "\n".join([f"{of}; {about}", "", "| what | value | unit |", "|---|---|---|", *rows, ""])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.json and gpu.md")
    parser.add_argument("--quick", action="store_true", help="tiny, to see that it runs")
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, help=f"after which nothing new is begun; {MINUTES:g} by default"
    )
    options = parser.parse_args(arguments)
    size, start = QUICK if options.quick else Size(), time.monotonic()
    with TemporaryDirectory() as folder:
        bench = Bench(size, Path(folder), start + 60 * options.minutes)
        parts: list[Callable[[], None]] = [bench.reading, bench.steps, bench.distillation, bench.low_bit, bench.evaluation]
        for part in [*parts, bench.engines]:
            name, begun = part.__name__, time.monotonic()
            with bench.noted(name):
                if not bench.over(name):
                    part()
            print(f"{name}: {time.monotonic() - begun:.1f} s", flush=True)
            found = {"size": asdict(size), "device": name_of(bench.device), "environment": environment(), "rows": bench.rows}
            write_json(options.out / "gpu.json", found)
            write_text(options.out / "gpu.md", table(found))
    print(table(found))


if __name__ == "__main__":
    main()
