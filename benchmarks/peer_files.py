"""Everyone's artefacts of one float detector, for `peers.py`: ours, and those of the tools that a user would pick instead."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, fx, nn
from torch.utils.data import DataLoader, Subset

from leandetr.data.batches import collate
from leandetr.data.coco import CocoDataset
from leandetr.deployment.budget import ap_on
from leandetr.deployment.executorch import write_executorch
from leandetr.deployment.folding import folded_graph
from leandetr.deployment.litert import add_text
from leandetr.deployment.metadata import KEY, describe
from leandetr.deployment.mobile_export import FORMATS, export_mobile
from leandetr.deployment.onnx import export_onnx
from leandetr.deployment.openvino import import_openvino, onnx_metadata, read_onnx
from leandetr.deployment.pytorch import PlainDetector, PyTorchRuntime
from leandetr.deployment.runtime import Runtime
from leandetr.deployment.runtimes import OnnxRuntime, OpenVinoRuntime
from leandetr.detectors.detector import Detector
from leandetr.quantization import Dynamic, Scheme, SmoothQuant, Static, Unified, WeightOnly, quantize
from leandetr.verbs.calibration import with_calibration

OURS: dict[str, Scheme] = {
    "weight-only": WeightOnly(),
    "weight-only-int4": WeightOnly(bits=4, calibration_images=0),
    "dynamic": Dynamic(),
    "smoothquant-static": SmoothQuant(activations="static", alpha="auto"),
    "static": Static(),
    "unified": Unified(),
}
PEERS = (
    *("ort-dynamic", "ort-static", "modelopt", "nncf", "nncf-transformer", "nncf-accuracy"),
    *("torch-compile", "torchao-weight-only", "torchao-dynamic"),
)
#: on the engine that a name begins with: ours by `Static(target="xnnpack")`, and the engine's own quantizer
MOBILE = ("executorch-ours", "executorch-own", "litert-ours", "litert-own")
FLOAT = "float"
MAX_DROP = 0.003  # of AP, that NNCF's accuracy control may take


class Compiled(PyTorchRuntime):
    """PyTorch with `torch.compile`, at whatever batch comes first."""

    def __init__(self, detector: Detector, artifact: str, size_bytes: int) -> None:
        super().__init__(detector, artifact)
        self.plain = torch.compile(self.plain)
        self.size_bytes = size_bytes


class Builder:
    """The artefacts in one folder. Each method gives the runtimes of one candidate.

    Args:
        detector: float.
        folder: where the files go.
        dataset: photographs to calibrate on, prepared for the detector; every one between two of them judges NNCF's accuracy.
        images: to calibrate on.
        threads: of one call.

    Attributes:
        seconds: that each candidate took to be made.
    """

    def __init__(self, detector: Detector, folder: Path, dataset: CocoDataset, images: int, threads: int) -> None:
        self.detector, self.folder, self.dataset, self.threads = detector, folder, dataset, threads
        chosen = torch.linspace(0, len(dataset) - 1, min(images, len(dataset))).round().long().tolist()
        self.calibration, self.chosen = Subset(dataset, chosen), chosen
        self.float_file = export_onnx(detector, folder / "float.onnx")
        self.seconds: dict[str, float] = {}

    def build(self, candidate: str) -> list[Runtime]:
        """Raises whatever a peer raises."""
        start = time.perf_counter()
        if candidate == FLOAT:
            runtimes = [PyTorchRuntime(self.detector, FLOAT), *self.engines(self.float_file)]
        elif candidate in OURS:
            runtimes = self.engines(export_onnx(self.quantized(OURS[candidate]), self.folder / f"{candidate}.onnx"))
        else:
            makers: dict[str, Callable[[str], list[Runtime]]] = {
                "ort": self.onnxruntime,
                "modelopt": self.modelopt,
                "nncf": self.nncf,
                "torch": self.torch,
                "executorch": self.mobile,
                "litert": self.mobile,
            }
            runtimes = next(make for prefix, make in makers.items() if candidate.startswith(prefix))(candidate)
        self.seconds[candidate] = time.perf_counter() - start
        return runtimes

    def pixels(self) -> Iterator[Any]:
        """(1, 3, H, W) float32, one photograph after the other."""
        for index in range(len(self.calibration)):
            yield self.calibration[index][0][None].numpy()

    def quantized(self, scheme: Scheme) -> Detector:
        batches = DataLoader(self.calibration, batch_size=8, collate_fn=collate)
        return quantize(self.detector, with_calibration(scheme, lambda _: len(self.calibration)), batches)

    def onnxruntime(self, candidate: str) -> list[Runtime]:
        from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        class Photographs(CalibrationDataReader):
            def __init__(self, pixels: Iterator[Any]) -> None:
                self.pixels = pixels

            def get_next(self) -> dict[str, Any] | None:
                return next(({"pixel_values": x} for x in self.pixels), None)

        path = self.folder / f"{candidate}.onnx"
        if candidate == "ort-dynamic":
            # convolutions stay float: ConvInteger is several times slower than they are
            quantize_dynamic(self.float_file, path, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True)
        else:
            prepared = self.folder / "ort-prepared.onnx"
            quant_pre_process(self.float_file, prepared, skip_symbolic_shape=True)
            quantize_static(
                prepared,
                path,
                Photographs(self.pixels()),
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
            prepared.unlink()
        return self.engines(self.with_metadata(path))

    def modelopt(self, candidate: str) -> list[Runtime]:
        from modelopt.onnx import quantization

        path = self.folder / f"{candidate}.onnx"
        pixels = torch.cat([torch.from_numpy(each) for each in self.pixels()]).numpy()
        quantization.quantize(
            str(self.float_file),
            quantize_mode="int8",
            calibration_eps=["cpu"],
            high_precision_dtype="fp32",
            calibration_data={"pixel_values": pixels},
            output_path=str(path),
            log_level="ERROR",
        )
        return self.engines(self.with_metadata(path))

    def nncf(self, candidate: str) -> list[Runtime]:
        import nncf

        nncf.set_log_level(logging.ERROR)
        model = read_onnx(self.float_file)
        samples = nncf.Dataset(list(self.pixels()), lambda x: {"pixel_values": x})
        if candidate == "nncf-accuracy":
            model = nncf.quantize_with_accuracy_control(
                model, samples, samples, self.judge(), max_drop=MAX_DROP, subset_size=len(self.calibration)
            )
        else:
            kind = nncf.ModelType.TRANSFORMER if candidate == "nncf-transformer" else None
            model = nncf.quantize(model, samples, model_type=kind, subset_size=len(self.calibration))
        model.set_rt_info(onnx_metadata(self.float_file), KEY)
        path = self.folder / f"{candidate}.xml"
        import_openvino().save_model(model, path, compress_to_fp16=False)
        return [self.named(OpenVinoRuntime(path, self.threads), candidate)]

    def judge(self) -> Callable[[Any, Any], tuple[float, None]]:
        """AP of one of NNCF's compiled models on as many photographs as calibrate, others of the same split."""
        between = sorted({(index + 1) % len(self.dataset) for index in self.chosen} - set(self.chosen))
        held_out, runtime = Subset(self.dataset, between), OpenVinoRuntime(self.float_file, self.threads)

        def ap(compiled: Any, _samples: Any) -> tuple[float, None]:
            runtime.compiled = compiled
            return ap_on(runtime, self.dataset, held_out), None

        return ap

    def torch(self, candidate: str) -> list[Runtime]:
        detector = copy.deepcopy(self.detector)
        if candidate.startswith("torchao"):
            from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_

            config = Int8WeightOnlyConfig() if candidate == "torchao-weight-only" else Int8DynamicActivationInt8WeightConfig()
            quantize_(detector.model, config)
        file = self.folder / f"{candidate}.pt"
        torch.save(detector.state_dict(), file)
        return [Compiled(detector, candidate, file.stat().st_size)]

    def mobile(self, candidate: str) -> list[Runtime]:
        engine, kind = candidate.split("-")
        path = self.folder / f"{candidate}.{'pte' if engine == 'executorch' else 'tflite'}"
        if kind == FLOAT:
            export_mobile(self.detector, path, engine)
        elif kind == "ours":
            export_mobile(self.quantized(Static(target="xnnpack")), path, engine)
        elif engine == "executorch":
            self.executorch(path)
        else:
            self.litert(path)
        return [self.named(FORMATS[engine].runtime(path, self.threads), kind)]

    def executorch(self, path: Path) -> None:
        """By ExecuTorch's own quantizer."""
        pixels = torch.from_numpy(next(self.pixels()))
        graph = self.by_its_quantizer(folded_graph(PlainDetector(self.detector).eval(), pixels), pixels)
        write_executorch(graph, pixels, describe(self.detector, self.detector.preprocessing), path)

    def by_its_quantizer(self, graph: fx.GraphModule, pixels: Tensor) -> nn.Module:
        """As ExecuTorch's documentation quantizes for XNNPACK."""
        from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
        prepared = prepare_pt2e(torch.export.export(graph, (pixels,), strict=False).module(), quantizer)
        for each in self.pixels():
            prepared(torch.from_numpy(each))
        return convert_pt2e(prepared)

    def litert(self, path: Path) -> None:
        """By LiteRT's own quantizer, from the float file."""
        from ai_edge_quantizer import quantizer, recipe

        quantized = quantizer.Quantizer(self.folder / f"litert-{FLOAT}.tflite", recipe.static_wi8_ai8())
        ranges = quantized.calibrate({"serving_default": [{"pixel_values": each} for each in self.pixels()]})
        path.write_bytes(quantized.quantize(ranges).quantized_model)
        add_text(path, describe(self.detector, self.detector.preprocessing).to_json())

    def with_metadata(self, path: Path) -> Path:
        """The file, with the float file's metadata in place of a tool's own."""
        model = onnx.load(path)
        del model.metadata_props[:]
        onnx.helper.set_model_props(model, {KEY: onnx_metadata(self.float_file)})
        onnx.save(model, path)
        return path

    def engines(self, path: Path) -> list[Runtime]:
        return [self.named(engine(path, self.threads), path.stem) for engine in (OnnxRuntime, OpenVinoRuntime)]

    @staticmethod
    def named(runtime: Runtime, candidate: str) -> Runtime:
        runtime.artifact = candidate
        return runtime
