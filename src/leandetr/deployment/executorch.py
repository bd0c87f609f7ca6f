"""ExecuTorch's `.pte`: what XNNPACK knows of a float graph runs there, the rest on ExecuTorch's own kernels.

The file's method "forward" takes pixel_values (1, 3, H, W) float32, normalised, and gives logits (1, N, C) and boxes (1, N, 4);
its method "leandetr" takes nothing and gives the metadata's text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from leandetr.deployment.metadata import KEY, Metadata
from leandetr.deployment.silence import silenced
from leandetr.errors import UserError

MISSING = "this needs the package executorch; install it with: pip install 'leandetr[executorch]'"


def write_executorch(graph: nn.Module, pixels: Tensor, metadata: Metadata, file: Path) -> None:
    """Write a detector's graph (`folding.py`) for photographs of the shape of `pixels` (1, 3, H, W), with its metadata.

    Raises UserError where executorch is not installed, and whatever it raises at operators that it does not know.
    """
    lower, partitioner = _import_compiler()
    program = torch.export.export(graph, (pixels,), strict=False)
    edge = lower(program, partitioner=[partitioner()], constant_methods={KEY: metadata.to_json()})
    with open(file, "wb") as opened:
        edge.to_executorch().write_to_file(opened)


def open_program(path: Path, threads: int) -> Any:
    """The `executorch.runtime.Program` of a file. ExecuTorch has one pool of threads a process: the last one opened says its
    size. Raises UserError where executorch is not installed, or the file is none of its own."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the path of an ExecuTorch file")
    runtime, resize_pool = _import_runtime()
    with silenced():
        try:
            resize_pool(threads)
            return runtime.get().load_program(path)
        except RuntimeError as error:
            raise UserError(f"{path} is not an ExecuTorch file or is truncated; export it again") from error


def text_of(program: Any) -> str | None:
    """The metadata that `write_executorch` left; None where something else wrote the file."""
    return str(program.load_method(KEY).execute(())[0]) if KEY in program.method_names else None


def check_pte(path: Path) -> None:
    """Raises UserError where `path` is no name for an ExecuTorch file, or executorch is not installed."""
    if path.suffix != ".pte":
        raise UserError(f"{path}: an ExecuTorch file ends in .pte; name it so")
    _import_runtime()


def _import_compiler() -> tuple[Any, Any]:
    try:
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower
    except ImportError as error:
        raise UserError(MISSING) from error
    return to_edge_transform_and_lower, XnnpackPartitioner


def _import_runtime() -> tuple[Any, Any]:
    try:
        with silenced():
            from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
            from executorch.runtime import Runtime
    except ImportError as error:
        raise UserError(MISSING) from error
    return Runtime, _unsafe_reset_threadpool
