"""ExecuTorch and LiteRT as `Runtime`s. Their files take one photograph of one size: a batch is answered one by one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from leandetr.deployment import executorch, litert
from leandetr.deployment.file_runtime import FileRuntime, read_metadata
from leandetr.deployment.silence import silenced
from leandetr.errors import UserError


class ExecuTorchRuntime(FileRuntime):
    """ExecuTorch on the CPU, its XNNPACK delegate and its own kernels.

    Args:
        path: a `.pte` that `export_mobile` wrote.
        threads: of one call; by default as many as PyTorch uses. ExecuTorch has one number a process: the last one holds.

    Raises:
        UserError: executorch is not installed, no such file, or a file of something else.
    """

    name, title = "executorch", "ExecuTorch"

    def __init__(self, path: Path, threads: int | None = None) -> None:
        self.program = executorch.open_program(path, threads or torch.get_num_threads())
        super().__init__(str(path), path.stat().st_size, read_metadata(path, executorch.text_of(self.program)))
        self.inputs = {"pixel_values"}
        with silenced():
            try:
                self.method = self.program.load_method("forward")
            except RuntimeError as error:
                raise UserError(f"{path}: ExecuTorch cannot run it ({error}); export it again with this version") from error

    def infer(self, feed: dict[str, NDArray], outputs: list[str]) -> list[NDArray]:
        pixels = torch.from_numpy(feed["pixel_values"])
        answers = [self.method.execute((image[None],)) for image in pixels]
        return _stacked([[tensor.numpy() for tensor in answer] for answer in answers])


class LiteRtRuntime(FileRuntime):
    """LiteRT on the CPU, where XNNPACK computes what it knows.

    Args:
        path: a `.tflite` that `export_mobile` wrote.
        threads: of one call; by default as many as PyTorch uses.

    Raises:
        UserError: ai-edge-litert is not installed, no such file, or a file of something else.
    """

    name, title = "litert", "LiteRT"

    def __init__(self, path: Path, threads: int | None = None) -> None:
        self.interpreter = litert.open_interpreter(path, threads or torch.get_num_threads())
        super().__init__(str(path), path.stat().st_size, read_metadata(path, litert.text_of(path)))
        self.inputs = {"pixel_values"}
        with silenced():
            try:
                self.interpreter.allocate_tensors()
                self.call = self.interpreter.get_signature_runner()
                self.given = self.call.get_input_details()["pixel_values"]
            except (KeyError, RuntimeError, ValueError) as error:
                raise UserError(f"{path}: LiteRT cannot run it ({error}); export it again with this version") from error

    def infer(self, feed: dict[str, NDArray], outputs: list[str]) -> list[NDArray]:
        answers = [self.call(pixel_values=self._taken(image[None])) for image in feed["pixel_values"]]
        return _stacked([[answer[name] for name in outputs] for answer in answers])

    def _taken(self, pixels: NDArray) -> NDArray:
        """As the file takes them: a quantized one on the grid of int8 that it names."""
        if self.given["dtype"] != np.int8:
            return pixels
        scale, zero_point = self.given["quantization"]
        return np.clip(np.round(pixels / scale) + zero_point, -128, 127).astype(np.int8)


def _stacked(answers: Sequence[Sequence[NDArray]]) -> list[NDArray]:
    """The answers to single photographs as that to a batch."""
    return [np.concatenate(each) for each in zip(*answers, strict=True)]
