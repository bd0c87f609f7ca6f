"""ONNX Runtime and OpenVINO as `Runtime`s, which differ in `infer`, and the runtime of any artefact."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import onnx_ir
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from leandetr.deployment.engines import ENGINES, check_gpu, is_exported, possible
from leandetr.deployment.file_runtime import FileRuntime, read_metadata
from leandetr.deployment.integer_kernels import add_in_products, clamp_bytes, multiply_matrices, repeat_bytes
from leandetr.deployment.metadata import KEY, Metadata
from leandetr.deployment.mobile_runtimes import ExecuTorchRuntime, LiteRtRuntime
from leandetr.deployment.openvino import core, onnx_metadata, read_onnx
from leandetr.deployment.providers import asked_providers, check_taken
from leandetr.deployment.pytorch import PyTorchRuntime, TorchvisionRuntime
from leandetr.deployment.runtime import Runtime
from leandetr.deployment.unpacking import can_overflow, unpack_onnx, unpack_openvino
from leandetr.detectors.checkpoints.load import load
from leandetr.detectors.detector import Detector
from leandetr.detectors.query_sets import answer_with
from leandetr.detectors.teachers import load_torchvision, names_torchvision
from leandetr.errors import UserError, reason, unknown
from leandetr.machine import adds_bytes_exactly

logger = logging.getLogger(__name__)


class OnnxRuntime(FileRuntime):
    """ONNX Runtime on the CPU or, with the package onnxruntime-gpu, on a GPU, where its own kernels (CUDA) or TensorRT compute.

    Args:
        path: a file that `export_onnx` wrote.
        threads: of one call; by default as many as PyTorch uses.
        device: where it computes.
        engine: "onnxruntime" or "onnxruntime-tensorrt"; this builds its kernels at the first call with a size, in minutes.

    Raises:
        UserError: no such file, not ONNX, written by something else, refused by ONNX Runtime, or ONNX Runtime cannot compute on
            that device.
    """

    title = "ONNX Runtime"

    def __init__(
        self,
        path: Path,
        threads: int | None = None,
        device: torch.device | str = "cpu",
        engine: str = "onnxruntime",
    ) -> None:
        path, self.name, self.device = Path(path), engine, torch.device(device)
        check_gpu(engine, self.device.type)
        super().__init__(str(path), *_onnx_facts(path))
        providers = asked_providers(self.device, self.metadata if ENGINES[engine].tensorrt else None)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised; the log would say it a second time
        options.intra_op_num_threads = threads or torch.get_num_threads()
        # Threads that spin after a call would take the processor from whatever runs next, as in an interleaved benchmark.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        # Without VNNI a processor adds pairs of products in 16 bits, too few for 255 * 127 twice: there the slower, exact way.
        options.add_session_config_entry("session.x64quantprecision", "1")
        try:
            whole = self.metadata.scheme is None or ENGINES[engine].tensorrt  # which reads the integers itself
            model = str(path) if whole else self._unpacked(path)
            self.session = onnxruntime.InferenceSession(model, options, providers=providers)
        except Exception as error:  # ONNX Runtime's errors have no common class
            raise UserError(f"{path}: ONNX Runtime refuses it ({reason(error)}); export it again with this version") from error
        check_taken(self.session, providers)
        self.inputs = {item.name for item in self.session.get_inputs()}

    def _unpacked(self, path: Path) -> bytes:
        start = time.perf_counter()
        model = onnx_ir.load(path)
        clamp_bytes(model.graph)
        multiply_matrices(model.graph)
        if self.device.type == "cpu":
            add_in_products(model.graph)
        repeat_bytes(model.graph)
        RemoveUnusedNodesPass()(model)
        self.unpacked = unpack_onnx(model)
        file = onnx_ir.to_proto(model).SerializeToString()
        self.unpack_seconds = time.perf_counter() - start
        return file

    def infer(self, feed: dict[str, NDArray], outputs: list[str]) -> list[NDArray]:
        try:
            return self.session.run(outputs, feed)
        except Exception as error:  # ONNX Runtime's errors have no common class
            raise UserError(f"{self.artifact}: ONNX Runtime cannot run it ({reason(error)}); export it again") from error


class OpenVinoRuntime(FileRuntime):
    """OpenVINO on the CPU, in process. What the file has in float32 is computed in float32, as the other engines do; OpenVINO's
    own default is bfloat16 where the processor has it.

    Args:
        path: an `.xml` that `convert_openvino` wrote, or an `.onnx` that `export_onnx` wrote.
        threads: of one call; by default as many as PyTorch uses.

    Raises:
        UserError: openvino is not installed, no such file, or a file of something else.
    """

    name, title = "openvino", "OpenVINO"

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
            super().__init__(str(path), path.stat().st_size + weights.stat().st_size, read_metadata(path, text))
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
            if not adds_bytes_exactly() and can_overflow(model):
                logger.warning(
                    "%s: on this processor, which has no VNNI, OpenVINO's sums of 8-bit products can overflow: evaluate the "
                    "file there, or quantize it with --set weight_bits=7, or run it on onnxruntime, which is exact",
                    path,
                )
            self.compiled = core().compile_model(model, "CPU", config)
        except RuntimeError as error:
            raise UserError(f"{path}: OpenVINO cannot run it ({reason(error)}); run the .onnx on onnxruntime") from error
        self.inputs = {port.get_any_name() for port in self.compiled.inputs}

    def infer(self, feed: dict[str, NDArray], outputs: list[str]) -> list[NDArray]:
        try:
            answer = self.compiled(feed)
            return [answer[name] for name in outputs]
        except (RuntimeError, KeyError) as error:  # KeyError: an output that it does not have
            raise UserError(f"{self.artifact}: OpenVINO cannot run it ({reason(error)}); export it again") from error


#: engines that compute nowhere but on the CPU here
ON_CPU: dict[str, type[OpenVinoRuntime] | type[ExecuTorchRuntime] | type[LiteRtRuntime]] = {
    runtime.name: runtime for runtime in (OpenVinoRuntime, ExecuTorchRuntime, LiteRtRuntime)
}


def open_runtime(
    source: str | Path,
    threads: int | None = None,
    engine: str | None = None,
    queries: str | None = None,
    device: torch.device | str = "cpu",
) -> Runtime:
    """The runtime for an artefact: an `.onnx` on ONNX Runtime, an `.xml` on OpenVINO, a `.pte` on ExecuTorch, a `.tflite` on
    LiteRT, a folder, hub id or detector of torchvision on PyTorch.

    Args:
        source: what to run.
        threads: of one call, and of PyTorch in this process, which does the post-processing for all; by default PyTorch's own.
        engine: one of `ENGINES`; an `.onnx` also runs on "openvino" and "onnxruntime-tensorrt", a detector of PyTorch also
            compiled ("pytorch-compile"), as a CUDA graph ("pytorch-graphs"), and each in float16 ("pytorch-half").
        queries: which set of a saved detector answers, see `query_sets.answer_with`; by default the one it was saved with.
        device: where it computes. OpenVINO, ExecuTorch and LiteRT stay on the CPU, and ONNX Runtime where it cannot compute on
            the device and was not named as the engine; a warning says so.

    Raises:
        UserError: an unknown engine, one that does not run such a file or cannot compute on the device, a file that cannot be
            read, or a choice of queries where there is none.
    """
    suffix, device = Path(source).suffix, torch.device(device)
    if suffix == ".mlpackage":
        raise UserError(f"{source} runs on Apple's devices alone; name the detector it was made from, or its .onnx")
    known = ["pytorch"] if names_torchvision(source) else possible(suffix)
    if engine is not None and engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    if engine is not None and engine not in known:
        raise UserError(f"{source} does not run on {engine}; it runs on {', '.join(known)}")
    if queries is not None and (is_exported(suffix) or names_torchvision(source)):
        raise UserError(f"{source} offers no choice of queries; name a saved detector, or export one again with --queries")
    if threads is not None:
        torch.set_num_threads(threads)
    name = engine or known[0]
    if name in ON_CPU:
        if device.type != "cpu":
            logger.warning("%s runs on the CPU: %s computes nowhere else here", source, ON_CPU[name].title)
        return ON_CPU[name](Path(source), threads)
    if ENGINES[name].files:
        return OnnxRuntime(Path(source), threads, device if engine else _possible_device(source, device), name)
    if names_torchvision(source):
        return TorchvisionRuntime(load_torchvision(str(source)).to(device))
    check_gpu(name, device.type)
    return PyTorchRuntime(load_answering(source, queries).to(device), source, name)


def _possible_device(source: str | Path, device: torch.device) -> torch.device:
    """Where ONNX Runtime runs a file that nobody asked it to run; a warning says where that is not the device."""
    try:
        asked_providers(device)
    except UserError as error:
        logger.warning("%s runs on the CPU: %s", source, error)
        return torch.device("cpu")
    return device


def load_answering(source: str | Path, queries: str | None) -> Detector:
    """A saved detector whose answers come from one of its sets of queries, or from the one it was saved with."""
    detector = load(source)
    if queries is not None:
        answer_with(detector.config, queries)
    return detector


def _onnx_facts(path: Path) -> tuple[int, Metadata]:
    metadata = read_metadata(path, onnx_metadata(path))
    return path.stat().st_size, metadata
