"""Which of ONNX Runtime's execution providers computes, and what is said where it is not there.

The package onnxruntime has none for GPUs; onnxruntime-gpu has them and takes its place. Where a provider cannot start, ONNX
Runtime goes on with the next one it was given: after opening a session it is asked which it took.
"""

from __future__ import annotations

import logging
from typing import Any

import onnxruntime
import torch

from leandetr.deployment.metadata import Metadata
from leandetr.errors import UserError

CPU, CUDA, TENSORRT = (f"{name}ExecutionProvider" for name in ("CPU", "CUDA", "Tensorrt"))
INSTALL = "put the package for GPUs in its place with: pip uninstall -y onnxruntime && pip install onnxruntime-gpu"

logger = logging.getLogger(__name__)


def asked_providers(device: torch.device, tensorrt: Metadata | None = None) -> list[Any]:
    """What a session is opened with, the one that is wanted first.

    Args:
        device: "cpu", or a GPU, which is that of PyTorch.
        tensorrt: of a file whose kernels TensorRT is to build: of integers and float16 where the file has some.

    Raises:
        UserError: the installed ONNX Runtime has no such provider.
    """
    if device.type == "cpu":
        return [CPU]
    number = {"device_id": device.index or 0}
    asked: list[Any] = [(CUDA, number), CPU]  # what has no kernel for a GPU, as shapes, is computed beside it
    if tensorrt is not None:
        types = {"trt_int8_enable": tensorrt.scheme is not None, "trt_fp16_enable": tensorrt.half}
        asked.insert(0, (TENSORRT, number | types))
    wanted, present = CUDA if tensorrt is None else TENSORRT, onnxruntime.get_available_providers()
    if wanted not in present:
        raise UserError(
            f"the installed ONNX Runtime has no {wanted} (it has {', '.join(present)}); {INSTALL}, or add --device cpu"
        )
    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # CUDA's and cuDNN's libraries of PyTorch's packages
    return asked


def check_taken(session: Any, asked: list[Any]) -> None:
    """Raises UserError where a session that was asked to compute with one provider goes on without it."""
    wanted = asked[0] if isinstance(asked[0], str) else asked[0][0]
    taken = session.get_providers()
    if wanted not in taken:
        libraries = "TensorRT's libraries (pip install tensorrt)" if wanted == TENSORRT else "CUDA's and cuDNN's libraries"
        raise UserError(
            f"ONNX Runtime has {wanted}, but could not start it and took {', '.join(taken)}; it needs {libraries} of the "
            "versions that its documentation names, or add --device cpu"
        )
