"""A detector as one file for ExecuTorch or LiteRT, checked against PyTorch before it gets its name.

Their graphs have one shape: one photograph a call, of one size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, fx

from leandetr.deployment.executorch import check_pte, write_executorch
from leandetr.deployment.file_runtime import FileRuntime
from leandetr.deployment.folding import folded_graph
from leandetr.deployment.litert import check_tflite, write_litert
from leandetr.deployment.metadata import Metadata, describe
from leandetr.deployment.mobile_runtimes import ExecuTorchRuntime, LiteRtRuntime
from leandetr.deployment.pytorch import PlainDetector
from leandetr.deployment.silence import silenced
from leandetr.deployment.tracing import ExportError, preprocessing_for, quiet_export, root, sample_of
from leandetr.deployment.verify import verify
from leandetr.deployment.xnnpack import check_xnnpack
from leandetr.detectors.detector import Detector
from leandetr.errors import UserError
from leandetr.files import writing


@dataclass(frozen=True)
class Format:
    """check: of the file's name and the packages. write: (graph, pixels, metadata's text, file). runtime: what opens it.
    packages: that write it."""

    check: Callable[[Path], None]
    write: Callable[[fx.GraphModule, Tensor, str, Path], None]
    runtime: type[ExecuTorchRuntime] | type[LiteRtRuntime]
    packages: tuple[str, ...]


FORMATS = {
    "executorch": Format(check_pte, write_executorch, ExecuTorchRuntime, ("leandetr", "executorch")),
    "litert": Format(check_tflite, write_litert, LiteRtRuntime, ("leandetr", "litert-torch", "ai-edge-litert")),
}


def export_mobile(detector: Detector, path: Path, to: str, image_size: tuple[int, int] | None = None) -> Path:
    """Write a detector, on the CPU, as a file that carries all that is needed to use it.

    Args:
        detector: any of the families, float or on the grids of `Static(target="xnnpack")`; it is left as it is.
        path: where the file goes, ending in .pte or .tflite; an existing one is replaced once the new one has been checked.
        to: a name in `FORMATS`.
        image_size: fixed (height, width) that photographs are resized to, by default that of the detector's preprocessing.

    Before the file gets its name, the engine and PyTorch answer the same random pixels; a warning is given as by `export_onnx`.

    Raises:
        UserError: another ending, a package that is not installed, a detector quantized otherwise, no fixed size or one that
            the family cannot take, or a model that cannot be written like this or that the engine cannot run.
    """
    path, chosen = Path(path), FORMATS[to]
    title = chosen.runtime.title
    chosen.check(path)
    check_xnnpack(detector, path, title)
    preprocessing = preprocessing_for(detector, path, image_size, end_to_end=False)
    if preprocessing.size is None:
        raise UserError(
            f"{path}: a file for {title} takes photographs of one size, which this detector has not; add --image-size"
        )
    training = detector.training
    detector.eval()
    metadata, model = describe(detector, preprocessing, packages=chosen.packages), PlainDetector(detector).eval()
    try:
        with writing(path) as temporary:
            _write(model, metadata, chosen, temporary)
            verify(path, model, _opened(chosen, temporary), (1,))
    except ExportError as error:
        raise UserError(f"{path}: {detector.config.model_type} {error}; add --to onnx") from error
    finally:
        detector.train(training)
    return path


@torch.no_grad()
def _write(model: PlainDetector, metadata: Metadata, chosen: Format, file: Path) -> None:
    (pixels,) = sample_of(1, metadata)
    try:
        with quiet_export(), silenced():
            chosen.write(folded_graph(model, pixels), pixels, metadata.to_json(), file)
    except (UserError, OSError):  # a package that is not installed, a disk that is full
        raise
    except Exception as error:  # the compilers' errors have no common class
        raise ExportError(f"cannot be written for {chosen.runtime.title}: {root(error)}") from error


def _opened(chosen: Format, file: Path) -> FileRuntime:
    try:
        return chosen.runtime(file)
    except UserError as error:  # which names the temporary file
        raise ExportError(f"was written, but {chosen.runtime.title} cannot open it: {root(error)}") from error
