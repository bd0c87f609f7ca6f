"""Photographs of many sizes, and how many of them pass through a training, `predict` and a server."""

from __future__ import annotations

import itertools
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from leandetr.data.shapes import draw_scene, write_shapes
from long_runs.watch import Memory, Used, command, used, watched
from serve import ask, serving

ROOT = Path(__file__).resolve().parents[2]
DETECTOR = ROOT / "recipes" / "shapes-teacher"
IMAGES, EPOCHS, VAL = 2000, 10, 200  # 20,000 training images in all
SMALLER = ("--queries", "10", "--set", "model.decoder_layers=2", "--set", "model.num_denoising=0")
PHOTOGRAPHS = 10_000
FILES = 100  # different ones; the others are links
CLIENTS = 2
SIDE = 64


def train(work: Path, scale: float) -> Used:
    """With one process that reads images, and an evaluation after every epoch."""
    data = write_shapes(work / "shapes", max(1, int(IMAGES * scale)), VAL, (SIDE, SIDE))
    size, out = ("--image-size", str(SIDE), str(SIDE)), ("--out", str(work / "trained"))
    schedule = ("--epochs", str(EPOCHS), "--batch-size", "16", "--set", "training.workers=1")
    return watched(command, "train", "--model", str(DETECTOR), "--data", str(data), *out, *size, *schedule, *SMALLER)


def predict(work: Path, scale: float) -> Used:
    """By ONNX Runtime, with drawings."""
    return watched(command, "predict", str(_exported(work)), str(_photographs(work, scale)), "--out", str(work / "predicted"))


def serve(work: Path, scale: float) -> Used:
    """Through a server, by clients that send one after the other. SystemExit where one is not answered."""
    files = [file.read_bytes() for file in sorted(_photographs(work, 0.01).iterdir())]
    with serving(str(_exported(work)), []) as (address, process):
        memory, before = Memory(process.pid), process.cpu_times()
        with ThreadPoolExecutor(CLIENTS) as threads:
            sent = list(itertools.islice(itertools.cycle(files), int(PHOTOGRAPHS * scale)))
            answers = list(threads.map(lambda share: ask(address, share), [sent[n::CLIENTS] for n in range(CLIENTS)]))
        time.sleep(1)
        spent = process.cpu_times()
        memory.stop()
    if other := {status for share in answers for status, _ in share} - {200}:
        raise SystemExit(f"the server answered {other}")
    return used(memory, spent.user + spent.system - before.user - before.system)


def _exported(work: Path) -> Path:
    file = work / "model.onnx"
    if not file.exists():
        watched(command, "export", str(DETECTOR), "--out", str(file))
    return file


def _photographs(work: Path, scale: float) -> Path:
    """A folder of so many, of sides from 64 to 400 pixels."""
    import numpy as np

    folder = work / f"photographs-{scale}"
    if folder.exists():
        return folder
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(int(PHOTOGRAPHS * scale)):
        place = folder / f"{number:05d}.jpg"
        if number < FILES:
            height, width = rng.integers(SIDE, 400, 2).tolist()
            Image.fromarray(draw_scene(rng, (height, width))[0]).save(place)
        else:
            os.link(folder / f"{number % FILES:05d}.jpg", place)
    return folder
