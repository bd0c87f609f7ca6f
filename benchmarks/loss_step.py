"""What a step costs with transformers' loss as it is, and with all layers matched and asked at once (`losses/at_once.py`).

    OMP_NUM_THREADS=1 python benchmarks/loss_step.py --objects 7 25

A small RT-DETRv2 with the published 6 decoder layers and denoising, 200 queries, batch 16: forward, loss and backward on the
CPU, medians of alternating steps in processor time, because other programs may run.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from leandetr.detectors.create import create
from leandetr.detectors.detector import Detector
from leandetr.losses.at_once import matching_at_once
from leandetr.structures import ClassMap

BATCH, CLASSES, SIDE = 16, 30, 160
WIDTHS = {"d_model": 64, "encoder_hidden_dim": 64, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "decoder_layers": 6}
CHANNELS = {"encoder_in_channels": [64] * 3, "decoder_in_channels": [64] * 3}


def seconds(detector: Detector, objects: int, seed: int, how: Callable[[], AbstractContextManager[None]]) -> float:
    """Processor time of a step on noise with so many objects an image."""
    torch.manual_seed(seed)
    pixels = torch.randn(BATCH, 3, SIDE, SIDE)
    labels = [
        {"class_labels": torch.randint(CLASSES, (objects,)), "boxes": 0.3 + 0.4 * torch.rand(objects, 4)} for _ in range(BATCH)
    ]
    start = time.process_time()
    with how():
        loss = detector(pixel_values=pixels, labels=labels).loss
    loss.backward()
    detector.zero_grad()
    return time.process_time() - start


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, nargs="+", default=[7], help="an image")
    parser.add_argument("--steps", type=int, default=7)
    options = parser.parse_args(arguments)
    classes = ClassMap(tuple(f"class {number}" for number in range(CLASSES)), tuple(range(CLASSES)))
    torch.manual_seed(0)
    given = {**WIDTHS, **CHANNELS, "num_queries": 200}
    detector = create("rt_detr_v2", classes, (SIDE, SIDE), "test_resnet", overrides=given).train()
    ways = {"transformers": nullcontext, "at once": matching_at_once}
    for objects in options.objects:
        for how in ways.values():  # warm
            seconds(detector, objects, 0, how)
        times = {name: [seconds(detector, objects, seed, how) for seed in range(options.steps)] for name, how in ways.items()}
        theirs, ours = (1e3 * statistics.median(found) for found in times.values())
        print(f"{objects} objects an image: {theirs:.0f} ms by transformers, {ours:.0f} ms at once, {theirs / ours:.2f} x")


if __name__ == "__main__":
    main()
