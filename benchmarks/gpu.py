"""What a GPU does: one run, one JSON and one table in Markdown, within eight minutes.

    python benchmarks/gpu.py --out runs/gpu           # RT-DETRv2 with a ResNet-50, 640 px, batch 16, in bfloat16
    python benchmarks/gpu.py --out runs/quick --quick # the same at a tiny size, on a CPU too; its numbers say nothing
    git worktree add ../before REVISION               # and with --before ../before, ratios to that state

Measured, on synthetic shapes that it draws itself and with untrained weights:

    steps         of training (`training_steps.py`): on one batch that is there, in `train`, in float32, of DETRDistill, of
                  4-4-8 training; the parts of one, its memory, its kernels and the operators that take most
    reading       images a second from files to batches on the device, with all the workers that `train` takes
    evaluation    images a second of `evaluate`, PyTorch
    engines       latency and throughput by batch of every engine that is installed
    compiled      a step with `training.compile`

What fails is a row with its error, and the rest is measured all the same. What there is no time for is said to be left out.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from leandetr.data.coco import find_split
from leandetr.deployment.benchmark import environment, measure
from leandetr.deployment.engines import ENGINES
from leandetr.deployment.onnx import export_onnx
from leandetr.deployment.pytorch import PyTorchRuntime
from leandetr.deployment.runtimes import open_runtime
from leandetr.files import write_json, write_text
from leandetr.machine import chosen_device, name_of
from leandetr.training.trainer import DetectionTrainer
from leandetr.verbs import evaluate_runtime
from training_steps import QUICK, Size, Steps, measured, now

MINUTES = 6.0
UNITLESS, MEMORY = ("kernels",), "memory"


class Bench:
    """Rows of one run."""

    def __init__(self, size: Size, folder: Path, out: Path, until: float, before: Path | None) -> None:
        self.size, self.folder, self.out, self.until, self.before = size, folder, out, until, before
        self.device = chosen_device()
        self.work = Steps(size, folder)
        self.data, self.detector = self.work.data, self.work.detector
        self.rows: list[dict[str, Any]] = []
        self.now: dict[str, Any] = {}

    def add(self, what: str, value: float, unit: str) -> None:
        """A row, which is written at once."""
        self.rows.append({"what": what, "value": value, "unit": unit})
        print(f"{what}: {value:.4g} {unit}", flush=True)
        self.write()

    def write(self) -> str:
        found = {"size": asdict(self.size), "device": name_of(self.device), "environment": environment(), "rows": self.rows}
        write_json(self.out / "gpu.json", found)
        text = table(found)
        write_text(self.out / "gpu.md", text)
        return text

    def reading(self) -> None:
        trainer, _ = self.work.trainer(copy.deepcopy(self.detector), DetectionTrainer)
        loader = trainer.get_train_dataloader()
        for _ in loader:  # the workers start
            pass
        start = now()
        batches = sum(1 for _ in loader)
        self.add(
            f"reading, {trainer.args.dataloader_num_workers} processes", batches * self.size.batch / (now() - start), "images/s"
        )

    def steps(self) -> None:
        for name, ask in measured(self.work):
            if self.over(name):
                continue
            with self.noted(name):
                for part, value in ask().items():
                    unit = "" if part in UNITLESS else "GiB" if part == MEMORY else "ms"
                    self.now[name] = value
                    self.add(f"{name}: {part}" if part else name, value, unit)
        if {"student's step", "teacher's answer", "DETRDistill step"} <= self.now.keys():
            alone = self.now["student's step"] + self.now["teacher's answer"]
            self.add("DETRDistill step over student's step and teacher's answer", self.now["DETRDistill step"] / alone, "x")
        if {"low-bit step", "step"} <= self.now.keys():
            self.add("low-bit step over step", self.now["low-bit step"] / self.now["step"], "x")

    def compiled(self) -> None:
        self.add("step, training.compile", 1e3 * self.work.step(copy.deepcopy(self.detector), compile=True), "ms")

    def earlier(self) -> None:
        """The same steps with another state of the package, in a process of its own."""
        if self.before is None:
            return
        script, out = Path(__file__).with_name("training_steps.py"), self.folder / "before.json"
        command = [
            sys.executable,
            str(script),
            "--out",
            str(out),
            "--brief",
            "--steps",
            str(self.size.steps // 2 or 1),
            *(["--quick"] if self.size is QUICK else []),
        ]
        paths = [str(self.before / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
        environ = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        try:
            subprocess.run(
                command, check=True, env=environ, capture_output=True, timeout=max(1.0, self.until - time.monotonic())
            )
        finally:  # what was measured in time
            for what, value in json.loads(out.read_text()).items() if out.exists() else ():
                if isinstance(value, float):
                    self.add(f"before: {what}", value, "ms")
                    if what in self.now:
                        self.add(f"before over now: {what}", value / self.now[what], "x")

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
        graph: Path | None = None
        split = find_split(self.data, "val")
        for engine in ENGINES:
            if self.over(engine):
                continue
            with self.noted(engine):
                source = self.folder / "float"
                if not engine.startswith("pytorch"):
                    source = graph = graph or export_onnx(self.detector, self.folder / "float.onnx")
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
    parser.add_argument("--before", type=Path, help="a checkout of an earlier state, whose steps are measured too")
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, help=f"after which nothing new is begun; {MINUTES:g} by default"
    )
    options = parser.parse_args(arguments)
    size, start = QUICK if options.quick else Size(), time.monotonic()
    with TemporaryDirectory() as folder:
        bench = Bench(size, Path(folder), options.out, start + 60 * options.minutes, options.before)
        parts: list[Callable[[], None]] = [bench.steps, bench.reading, bench.earlier, bench.evaluation, bench.engines]
        for part in [*parts, bench.compiled]:
            name, begun = part.__name__, time.monotonic()
            with bench.noted(name):
                if not bench.over(name):
                    part()
            print(f"{name}: {time.monotonic() - begun:.1f} s", flush=True)
            text = bench.write()
    print(text)


if __name__ == "__main__":
    main()
