"""A detector as one file for ExecuTorch, LiteRT or Core ML, checked against PyTorch before it gets its name where it runs here.

Their graphs have one shape: one photograph a call, of one size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, fx

from leandetr.deployment.coreml import check_float, check_mlpackage, write_coreml
from leandetr.deployment.executorch import check_pte, write_executorch
from leandetr.deployment.file_runtime import FileRuntime
from leandetr.deployment.folding import folded_graph
from leandetr.deployment.litert import check_tflite, write_litert
from leandetr.deployment.metadata import Metadata, describe
from leandetr.deployment.mobile_runtimes import ExecuTorchRuntime, LiteRtRuntime
from leandetr.deployment.pytorch import PlainDetector
from leandetr.deployment.sampling import pick_rows
from leandetr.deployment.silence import silenced
from leandetr.deployment.tracing import ExportError, preprocessing_for, quiet_export, root, sample_of
from leandetr.deployment.verify import verify
from leandetr.deployment.xnnpack import check_xnnpack
from leandetr.detectors.detector import Detector
from leandetr.errors import UserError
from leandetr.files import writing, writing_folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Format:
    """check: of the file's name and the packages. write: (graph, pixels, metadata, file). packages: that write it. runtime:
    what opens it, None where nothing but the devices that it is for does. halves: whether there is one in float16. samples:
    whether it has a kernel of its own for bilinear sampling."""

    title: str
    check: Callable[[Path], None]
    write: Callable[[fx.GraphModule, Tensor, Metadata, Path], None]
    packages: tuple[str, ...]
    runtime: type[ExecuTorchRuntime] | type[LiteRtRuntime] | None = None
    halves: bool = False
    samples: bool = False


FORMATS = {
    "executorch": Format("ExecuTorch", check_pte, write_executorch, ("leandetr", "executorch"), ExecuTorchRuntime),
    "litert": Format("LiteRT", check_tflite, write_litert, ("leandetr", "litert-torch", "ai-edge-litert"), LiteRtRuntime),
    "coreml": Format("Core ML", check_mlpackage, write_coreml, ("leandetr", "coremltools"), halves=True, samples=True),
}


def export_mobile(
    detector: Detector, path: Path, to: str, image_size: tuple[int, int] | None = None, half: bool = False
) -> Path:
    """Write a detector, on the CPU, as a file that carries all that is needed to use it.

    Args:
        detector: any of the families, float or on the grids of `Static(target="xnnpack")`; it is left as it is.
        path: where the file goes, ending in .pte, .tflite or (a folder) .mlpackage; an existing one is replaced once the new
            one is whole and, but for Core ML, has been checked.
        to: a name in `FORMATS`. Core ML takes float detectors alone.
        image_size: fixed (height, width) that photographs are resized to, by default that of the detector's preprocessing.
        half: of Core ML, all in float16.

    Before the file gets its name, the engine and PyTorch answer the same random pixels; a warning is given as by `export_onnx`.
    Core ML runs on Apple's devices alone, and a warning says that nothing was compared.

    Raises:
        UserError: another ending, a package that is not installed, a detector quantized otherwise, no fixed size or one that
            the family cannot take, or a model that cannot be written like this or that the engine cannot run.
    """
    path, chosen = Path(path), FORMATS[to]
    title = chosen.title
    chosen.check(path)
    if to == "coreml":
        check_float(detector, path)
    else:
        check_xnnpack(detector, path, title)
    preprocessing = preprocessing_for(detector, path, image_size, end_to_end=False)
    if preprocessing.size is None:
        raise UserError(
            f"{path}: a file for {title} takes photographs of one size, which this detector has not; add --image-size"
        )
    training = detector.training
    detector.eval()
    metadata, model = describe(detector, preprocessing, half=half, packages=chosen.packages), PlainDetector(detector).eval()
    try:
        with (writing if chosen.runtime else writing_folder)(path) as temporary:
            _write(model, metadata, chosen, temporary)
            if chosen.runtime:
                verify(path, model, _opened(chosen.runtime, temporary), (1,))
    except ExportError as error:
        raise UserError(f"{path}: {detector.config.model_type} {error}; add --to onnx") from error
    finally:
        detector.train(training)
    if chosen.runtime is None:
        logger.warning("%s was written and not run: %s is on Apple's devices alone", path, title)
    return path


@torch.no_grad()
def _write(model: PlainDetector, metadata: Metadata, chosen: Format, file: Path) -> None:
    (pixels,) = sample_of(1, metadata)
    try:
        with quiet_export(), silenced():
            graph = folded_graph(model, pixels)
            if not chosen.samples:
                pick_rows(graph)
            chosen.write(graph, pixels, metadata, file)
    except (UserError, OSError):  # a package that is not installed, a disk that is full
        raise
    except Exception as error:  # the compilers' errors have no common class
        raise ExportError(f"cannot be written for {chosen.title}: {root(error)}") from error


def _opened(runtime: type[ExecuTorchRuntime] | type[LiteRtRuntime], file: Path) -> FileRuntime:
    try:
        return runtime(file)
    except UserError as error:  # which names the temporary file
        raise ExportError(f"was written, but {runtime.title} cannot open it: {root(error)}") from error
