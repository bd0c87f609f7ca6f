"""PyTorch as a `Runtime`: detectors of transformers, as they are, compiled, and in half precision, and those of torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from leandetr.deployment.engines import ENGINES, Engine, check_gpu
from leandetr.deployment.metadata import Metadata, describe
from leandetr.deployment.runtime import Runtime
from leandetr.detectors.detector import Detector
from leandetr.detectors.image_size import explained
from leandetr.detectors.teachers import TorchvisionDetector
from leandetr.errors import UserError
from leandetr.structures import Batch, Detections
from leandetr.training.compiler import check_compiler
from leandetr.training.precision import keep_boxes_precise


class PlainDetector(nn.Module):
    """A detector as a function of tensors alone, without the hooks that read its layers: what is run, timed and exported."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.model = detector.model

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        output = self.model(pixel_values=pixel_values, pixel_mask=pixel_mask)
        return output.logits, output.pred_boxes


class PyTorchRuntime(Runtime):
    """PyTorch, on the device that the detector is on; puts the detector into evaluation mode.

    Args:
        detector: float or quantized.
        artifact: the folder or hub id that it was loaded from.
        engine: one of PyTorch's. With "half" in its name products are float16, and what leads to a box float32, as in a file in
            half precision. Compiled, the first call for every size of a batch takes minutes.

    Raises:
        UserError: half precision of a quantized detector, CUDA graphs on a CPU, or nothing is there to compile with.
    """

    def __init__(self, detector: Detector, artifact: str | Path = "", engine: str = "pytorch") -> None:
        self.name, self.engine = engine, ENGINES[engine]
        super().__init__(str(artifact), _written_bytes(detector, Path(artifact)), describe(detector, detector.preprocessing))
        self.detector = detector.eval()
        self.plain = PlainDetector(detector).eval()
        self.device = next(detector.parameters()).device
        _check_pytorch(self.name, self.engine, self.device, self.metadata.scheme is not None)
        if self.engine.half:
            keep_boxes_precise(detector)
        self.function: Any = self.plain
        if self.engine.compiled:
            self.function = torch.compile(self.plain, mode="reduce-overhead" if self.engine.graphs else "default")

    @torch.inference_mode()
    def run(self, pixel_values: Tensor, pixel_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        mask = None if pixel_mask is None else pixel_mask.to(self.device)
        height, width = pixel_values.shape[-2:]
        with (
            explained(self.detector, (height, width), self.artifact or "the detector"),
            torch.autocast(self.device.type, torch.float16, enabled=self.engine.half),
        ):
            logits, boxes = self.function(pixel_values.to(self.device), mask)
        return logits.float().cpu(), boxes.float().cpu()


def _check_pytorch(name: str, engine: Engine, device: torch.device, quantized: bool) -> None:
    if engine.half and quantized:
        raise UserError(f"engine {name}: half precision is of float detectors, this one is quantized; name another engine")
    check_gpu(name, device.type)
    if engine.compiled:
        try:
            check_compiler(device)
        except UserError as error:
            mend = "triton" if device.type == "cuda" else "g++"
            raise UserError(f"engine {name}: there is nothing to compile with; install {mend}, or name pytorch") from error


class TorchvisionRuntime(Runtime):
    """A detector of torchvision, which does its own post-processing; on the device that it is on."""

    name = "torchvision"

    def __init__(self, detector: TorchvisionDetector) -> None:
        weights = list(detector.state_dict().values())
        metadata = Metadata(
            class_map=detector.class_map,
            preprocessing=detector.preprocessing,
            head=detector.head,
            parameters=sum(parameter.numel() for parameter in detector.parameters()),
            scheme=None,
            provenance={"source": detector.source},
        )
        super().__init__(detector.source, sum(tensor.nbytes for tensor in weights), metadata)
        self.detector, self.device = detector, next(detector.parameters()).device

    def __call__(self, batch: Batch) -> list[Detections]:
        found = self.detector.predict(batch)
        return [Detections(each.scores.cpu(), each.labels.cpu(), each.boxes.cpu()) for each in found]


def _written_bytes(detector: Detector, folder: Path) -> int:
    """Of the folder's weights; where there is no such folder, of the weights as they would be written."""
    files = [file.stat().st_size for file in folder.glob("*.safetensors")] if str(folder) != "." else []
    tensors = {tensor.data_ptr(): tensor.nbytes for tensor in detector.state_dict().values()}
    return sum(files) or sum(tensors.values())
