"""What a process uses of its machine: the device that computes, and the processes that read images.

A device is chosen by what the process is let see of the GPUs (`CUDA_VISIBLE_DEVICES`), so that PyTorch, accelerate, ONNX
Runtime and the processes that it starts all choose the same.
"""

from __future__ import annotations

import os
import re

import torch

from leandetr.errors import UserError

VISIBLE = "CUDA_VISIBLE_DEVICES"
WORKERS = 8  # at most


def use_device(asked: str) -> torch.device:
    """Let this process compute on "auto" (a GPU where there is one), "cpu", "cuda", or "cuda:N", the N-th of the GPUs that it
    sees, from 0. To be called before anything has looked for GPUs. Returns what `chosen_device` returns from then on.

    Raises UserError for another word, a GPU that is not there, and where PyTorch has begun with other GPUs.
    """
    if asked == "auto":
        return chosen_device()
    found = re.fullmatch(r"cpu|cuda(?::(\d+))?", asked)
    if found is None:
        raise UserError(f"device {asked!r} is unknown: write auto, cpu, cuda, or cuda:N with a GPU's number, from 0")
    if asked != "cuda":
        if found[1] is not None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError(f"device {asked}: every process of a distributed training has a GPU of its own; write cuda")
        os.environ[VISIBLE] = "" if found[1] is None else _visible(asked, int(found[1]))
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (found[1] is not None and gpus > 1) or (asked == "cpu" and gpus):
        raise UserError(f"device {asked}: PyTorch uses another device already; set {VISIBLE} before Python starts")
    if asked != "cpu" and not gpus:
        raise UserError(f"device {asked}: PyTorch finds no such GPU (CUDA); write cpu, or auto for what there is")
    return chosen_device()


def chosen_device() -> torch.device:
    """Where detectors run, calibrate and train: the GPU of this process, the CPU where it has none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def name_of(device: torch.device) -> str:
    """The device as a person calls it: "cpu", or "cuda" with the name of the GPU."""
    return f"{device.type} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type


def adds_bytes_exactly() -> bool:
    """Whether the processor adds products of bytes in 32 bits. An x86 without VNNI first adds pairs of them in 16 bits, where
    255 * 127 twice is too much."""
    features = torch.cpu.get_capabilities()
    kinds = ("avx512_vnni", "avx_vnni", "amx_int8")
    return features["architecture"] != "x86_64" or any(features.get(kind) for kind in kinds)


def reading_processes() -> int:
    """As many as there are cores beyond two, at most eight: on a small CPU the computation needs them itself. Processes that
    were started together on a machine share its cores."""
    cores = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(0, min(WORKERS, cores - 2))


def _visible(asked: str, number: int) -> str:
    """The N-th of the GPUs that are visible by name; where none is named, N itself."""
    named = [name for name in os.environ.get(VISIBLE, "").split(",") if name]
    if VISIBLE not in os.environ:
        return str(number)
    if number >= len(named):
        raise UserError(f"device {asked}: {VISIBLE} lets this process see {len(named)} GPUs, counted from 0; name one of them")
    return named[number]
