"""The engines: PyTorch, ONNX Runtime and OpenVINO as `Runtime`s, which differ in `run`."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import onnx_ir
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from leandetr.deployment.integer_kernels import clamp_bytes, multiply_matrices
from leandetr.deployment.metadata import KEY, Metadata, describe
from leandetr.deployment.openvino import core, onnx_metadata, read_onnx
from leandetr.deployment.runtime import Runtime
from leandetr.deployment.unpacking import unpack_onnx, unpack_openvino
from leandetr.detectors.checkpoints.load import load
from leandetr.detectors.detector import Detector
from leandetr.detectors.query_sets import answer_with
from leandetr.detectors.teachers import TorchvisionDetector, load_torchvision, names_torchvision
from leandetr.errors import UserError, unknown
from leandetr.structures import Batch, Detections

logger = logging.getLogger(__name__)


class PlainDetector(nn.Module):
    """A detector as a function of tensors alone, without the hooks that read its layers: what is run, timed and exported."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.model = detector.model

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        output = self.model(pixel_values=pixel_values, pixel_mask=pixel_mask)
        return output.logits, output.pred_boxes


class PyTorchRuntime(Runtime):
    """Eager PyTorch, on the device that the detector is on; puts the detector into evaluation mode.

    Args:
        detector: float or quantized.
        artifact: the folder or hub id that it was loaded from.
    """

    name = "pytorch"

    def __init__(self, detector: Detector, artifact: str | Path = "") -> None:
        super().__init__(str(artifact), _written_bytes(detector, Path(artifact)), describe(detector, detector.preprocessing))
        self.detector = detector.eval()
        self.plain = PlainDetector(detector).eval()
        self.device = next(detector.parameters()).device

    @torch.inference_mode()
    def run(self, pixel_values: Tensor, pixel_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        mask = None if pixel_mask is None else pixel_mask.to(self.device)
        logits, boxes = self.plain(pixel_values.to(self.device), mask)
        return logits.cpu(), boxes.cpu()


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


class FileRuntime(Runtime):
    """What the engines that run exported files share; they set `inputs`, the names of the graph's, and implement `infer`."""

    inputs: set[str]

    def infer(self, feed: dict[str, NDArray], outputs: list[str]) -> list[NDArray]:
        """The graph's inputs by name -> those of its outputs that are named."""
        raise NotImplementedError

    def run(self, pixel_values: Tensor, pixel_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        given = {"pixel_values": pixel_values, "pixel_mask": pixel_mask}
        feed = {
            name: tensor.contiguous().numpy() for name, tensor in given.items() if tensor is not None and name in self.inputs
        }
        logits, boxes = self.infer(feed, ["logits", "boxes"])
        return torch.from_numpy(logits), torch.from_numpy(boxes)

    def run_end_to_end(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """images (B, H, W, 3) uint8 RGB -> scores (B, k), labels (B, k) and boxes (B, k, 4), (x0, y0, x1, y1) in pixels of the
        images; for files that are end to end."""
        scores, labels, boxes = self.infer({"images": images.contiguous().numpy()}, ["scores", "labels", "boxes"])
        return torch.from_numpy(scores), torch.from_numpy(labels), torch.from_numpy(boxes)

    def __call__(self, batch: Batch) -> list[Detections]:
        if not self.metadata.end_to_end:
            return super().__call__(batch)
        found = []
        for pixels, target in zip(batch["pixel_values"], batch["labels"], strict=True):
            height, width = target["size"].tolist()  # without the padding
            image = pixels[:, :height, :width].round().to(torch.uint8).permute(1, 2, 0)
            found.append(Detections(*(answer[0] for answer in self.run_end_to_end(image[None]))))
        return found


class OnnxRuntime(FileRuntime):
    """ONNX Runtime on the CPU.

    Args:
        path: a file that `export_onnx` wrote.
        threads: of one call; by default as many as PyTorch uses.

    Raises:
        UserError: no such file, not ONNX, written by something else, or refused by ONNX Runtime.
    """

    name = "onnxruntime"

    def __init__(self, path: Path, threads: int | None = None) -> None:
        path = Path(path)
        super().__init__(str(path), *_onnx_facts(path))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised; the log would say it a second time
        options.intra_op_num_threads = threads or torch.get_num_threads()
        # Threads that spin after a call would take the processor from whatever runs next, as in an interleaved benchmark.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            model = str(path) if self.metadata.scheme is None else self._unpacked(path)
            self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors have no common class
            raise UserError(f"{path}: ONNX Runtime refuses it ({error}); export it again with this version") from error
        self.inputs = {item.name for item in self.session.get_inputs()}

    def _unpacked(self, path: Path) -> bytes:
        start = time.perf_counter()
        model = onnx_ir.load(path)
        clamp_bytes(model.graph)
        multiply_matrices(model.graph)
        self.unpacked = unpack_onnx(model)
        file = onnx_ir.to_proto(model).SerializeToString()
        self.unpack_seconds = time.perf_counter() - start
        return file

    def infer(self, feed: dict[str, NDArray], outputs: list[str]) -> list[NDArray]:
        return self.session.run(outputs, feed)


class OpenVinoRuntime(FileRuntime):
    """OpenVINO on the CPU, in process. What the file has in float32 is computed in float32, as the other engines do; OpenVINO's
    own default is bfloat16 where the processor has it.

    Args:
        path: an `.xml` that `convert_openvino` wrote, or an `.onnx` that `export_onnx` wrote.
        threads: of one call; by default as many as PyTorch uses.

    Raises:
        UserError: openvino is not installed, no such file, or a file of something else.
    """

    name = "openvino"

    def __init__(self, path: Path, threads: int | None = None) -> None:
        path = Path(path)
        if path.suffix == ".onnx":
            super().__init__(str(path), *_onnx_facts(path))
            try:
                model = read_onnx(path)
            except RuntimeError as error:
                raise UserError(f"{path}: OpenVINO cannot read it; run it on onnxruntime") from error
        else:
            weights = path.with_suffix(".bin")
            for file in (path, weights):
                if not file.is_file():
                    raise UserError(
                        f"{file}: no such file; an OpenVINO model is an .xml with a .bin of the same name beside it"
                    )
            try:
                model = core().read_model(path, weights)
            except RuntimeError as error:
                raise UserError(f"{path} is not an OpenVINO model or is truncated; convert it again") from error
            text = model.get_rt_info(KEY).astype(str) if model.has_rt_info(KEY) else None
            super().__init__(str(path), path.stat().st_size + weights.stat().st_size, _read_metadata(path, text))
        config = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads or torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",  # integer weights do not make it round the inputs too
        }
        try:
            start = time.perf_counter()
            self.unpacked = unpack_openvino(model)
            self.unpack_seconds = time.perf_counter() - start
            self.compiled = core().compile_model(model, "CPU", config)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(f"{path}: OpenVINO cannot run it ({reason}); run the .onnx on onnxruntime") from error
        self.inputs = {port.get_any_name() for port in self.compiled.inputs}

    def infer(self, feed: dict[str, NDArray], outputs: list[str]) -> list[NDArray]:
        answer = self.compiled(feed)
        return [answer[name] for name in outputs]


ENGINES = ("pytorch", "onnxruntime", "openvino")


def open_runtime(
    source: str | Path,
    threads: int | None = None,
    engine: str | None = None,
    queries: str | None = None,
    device: torch.device | str = "cpu",
) -> Runtime:
    """The runtime for an artefact: an `.onnx` on ONNX Runtime, an `.xml` on OpenVINO, a folder, hub id or detector of
    torchvision on PyTorch.

    Args:
        source: what to run.
        threads: of one call, and of PyTorch in this process, which does the post-processing for all; by default PyTorch's own.
        engine: one of `ENGINES`; an `.onnx` also runs on "openvino".
        queries: which set of a saved detector answers, see `query_sets.answer_with`; by default the one it was saved with.
        device: of PyTorch; files run on the CPU, and a warning says so where another device is given.

    Raises:
        UserError: an unknown engine, one that does not run such a file, a file that cannot be read, or a choice of queries
            where there is none.
    """
    suffix = Path(source).suffix
    possible = {".onnx": ("onnxruntime", "openvino"), ".xml": ("openvino",)}.get(suffix, ("pytorch",))
    if engine is not None and engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    if engine is not None and engine not in possible:
        raise UserError(f"{source} does not run on {engine}; it runs on {' or '.join(possible)}")
    if queries is not None and (suffix in (".onnx", ".xml") or names_torchvision(source)):
        raise UserError(f"{source} offers no choice of queries; name a saved detector, or export one again with --queries")
    if threads is not None:
        torch.set_num_threads(threads)
    if possible != ("pytorch",) and torch.device(device).type != "cpu":
        logger.warning("%s runs on the CPU: only detectors of PyTorch compute on %s here", source, device)
    match engine or possible[0]:
        case "onnxruntime":
            return OnnxRuntime(Path(source), threads)
        case "openvino":
            return OpenVinoRuntime(Path(source), threads)
        case _ if names_torchvision(source):
            return TorchvisionRuntime(load_torchvision(str(source)).to(device))
        case _:
            return PyTorchRuntime(load_answering(source, queries).to(device), source)


def load_answering(source: str | Path, queries: str | None) -> Detector:
    """A saved detector whose answers come from one of its sets of queries, or from the one it was saved with."""
    detector = load(source)
    if queries is not None:
        answer_with(detector.config, queries)
    return detector


def _onnx_facts(path: Path) -> tuple[int, Metadata]:
    metadata = _read_metadata(path, onnx_metadata(path))
    return path.stat().st_size, metadata


def _read_metadata(path: Path, text: str | None) -> Metadata:
    if text is None:
        raise UserError(f"{path} does not say what its classes and preprocessing are; export the detector with leandetr")
    try:
        return Metadata.from_json(text)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} was exported by another version of leandetr ({error!r}); export it again") from error


def _written_bytes(detector: Detector, folder: Path) -> int:
    """Of the folder's weights; where there is no such folder, of the weights as they would be written."""
    files = [file.stat().st_size for file in folder.glob("*.safetensors")] if str(folder) != "." else []
    tensors = {tensor.data_ptr(): tensor.nbytes for tensor in detector.state_dict().values()}
    return sum(files) or sum(tensors.values())
