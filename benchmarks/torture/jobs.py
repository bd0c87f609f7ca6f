"""The commands that are interrupted, and what of their results must be the same however often they were."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from torture import fuzz

PATIENCE = 900.0  # seconds by the clock
TABLE = ("name", "runtime", "seeds", "ap", "ap50", "ap75", "against", "change", "change_interval", "size_bytes", "parameters")
RESUMING = ("training", "steps", "cache")  # folders of what is needed for going on


@dataclass(frozen=True)
class Job:
    """A command that writes into `out/result`; a disk may be mounted at `out`."""

    arguments: tuple[str, ...]

    def start(self, case: Path) -> fuzz.Running:
        return fuzz.start(case, list(self.arguments))


JOBS = {
    "compress": Job(("compress", "recipe.yaml", "--out", "out/result", "--set", "benchmark.runtimes=[pytorch]")),
    "compress with exports": Job(("compress", "recipe.yaml", "--out", "out/result")),  # most of whose time they take
    "export": Job(("export", "model", "--out", "out/result/model.onnx")),
    "quantize": Job(
        (
            "quantize",
            "model",
            "--data",
            "coco",
            "--scheme",
            "static",
            "--calibration",
            "2",
            "--out",
            "out/result",
            "--device",
            "cpu",
        )
    ),
    "data convert": Job(("data", "convert", "voc", "--out", "out/result")),
    "train": Job(
        ("train", "--model", "model", "--data", "coco", "--out", "out/result", "--epochs", "8", "--set", "training.workers=1")
    ),
    "predict": Job(("predict", "model", "coco/train", "coco/val", "--out", "out/result")),
}


@dataclass(frozen=True)
class Reference:
    """An uninterrupted run: what it left, and how long it took by the clock and of the processor."""

    made: dict[str, str]
    seconds: float
    processor: float


@cache  # in each process that makes rows
def reference(job: Job, subjects: Path, work: Path) -> Reference:
    case, begun = fuzz.copied(subjects, work / f"cases/reference {os.getpid()}/case"), time.monotonic()
    ended = finished(job.start(case))
    if ended.status != 0:
        raise RuntimeError(f"{' '.join(job.arguments)} fails uninterrupted: {ended.told[-2000:]}")
    found = Reference(digests(case / "out"), time.monotonic() - begun, ended.seconds)
    shutil.rmtree(case.parent)
    return found


def finished(one: fuzz.Running) -> fuzz.Ended:
    while (ended := one.ended(PATIENCE)) is None:
        time.sleep(0.01)
    return ended


def running_for(one: fuzz.Running, seconds: float) -> fuzz.Ended | None:
    """How it ended, None where it still runs after so long."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if (ended := one.ended(PATIENCE)) is not None:
            return ended
        time.sleep(0.005)
    return None


def reaped(one: fuzz.Running, signal: int) -> fuzz.Ended:
    os.kill(one.process, signal)
    return finished(one)


def digests(out: Path) -> dict[str, str]:
    """Of every file of weights, exported graph, picture and annotation, and of the table without its times."""
    found = {}
    for path in sorted(filter(Path.is_file, out.rglob("*"))):
        name = path.relative_to(out)
        if any(part in RESUMING or part.startswith((".", "checkpoint-")) for part in name.parts):
            continue
        if path.name == "results.json":
            found[str(name)] = repr(_table(json.loads(path.read_text())))
        elif path.suffix in (".safetensors", ".onnx", ".jpg") or "annotations" in name.parts or path.name == "predictions.json":
            found[str(name)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _table(results: dict[str, Any]) -> list[list[Any]]:
    return [[row.get(key) for key in TABLE] for row in results["rows"]]


def differences(made: dict[str, str], other: dict[str, str]) -> list[str]:
    return [name for name in sorted({**made, **other}) if made.get(name) != other.get(name)]
