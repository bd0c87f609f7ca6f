"""Our quantization beside what a user would pick instead: one float model, everyone's int8, the same photographs.

    python benchmarks/peers.py runs/bccd/distilled --data DATA --out OUT          accuracy, latency, bytes of a trained detector
    python benchmarks/peers.py rt-detr-v2-r18 --data DATA --out OUT               latency and bytes with random weights

The peers are ONNX Runtime's `quantize_dynamic` and `quantize_static`, NNCF's `quantize` (its default and
`model_type=TRANSFORMER`) and torchao. ONNX Runtime's and ours are files that both engines run, NNCF's run on OpenVINO,
torchao's in PyTorch. All are measured in turn in one run (see `leandetr.deployment.benchmark`); every ratio is against the
float model on the same engine, or against eager float PyTorch with `--against eager`. Writes OUT/peers.json, OUT/peers.md and
the files.

Needs the peers: pip install 'leandetr[peers]'. Models by name have random weights, so their accuracy is not measured:

    detr-r50         DETR-R50 at 480 x 640          swin-detr-b      DETR on the last stage of Swin-B at 224 x 224
    rt-detr-v2-r18   RT-DETRv2-R18 at 640 x 640
"""

from __future__ import annotations

import argparse
import copy
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import torch
from torch.utils.data import DataLoader, Subset

from leandetr.data.batches import collate
from leandetr.data.coco import CocoDataset, class_map_of, find_split
from leandetr.data.transforms import eval_transform
from leandetr.deployment.benchmark import environment, measure
from leandetr.deployment.metadata import KEY, scheme_of
from leandetr.deployment.onnx import export_onnx
from leandetr.deployment.openvino import import_openvino, onnx_metadata, read_onnx
from leandetr.deployment.pytorch import PyTorchRuntime
from leandetr.deployment.runtime import Runtime
from leandetr.deployment.runtimes import OnnxRuntime, OpenVinoRuntime
from leandetr.detectors.checkpoints.load import load
from leandetr.detectors.create import create
from leandetr.detectors.detector import Detector
from leandetr.errors import UserError
from leandetr.evaluation import coco
from leandetr.files import write_json, write_text
from leandetr.quantization import Dynamic, Scheme, SmoothQuant, Static, Unified, WeightOnly, quantize
from leandetr.report.columns import SLOWER
from leandetr.report.rows import surely_slower
from leandetr.verbs.calibration import with_calibration

PUBLISHED: dict[str, dict[str, Any]] = {
    "detr-r50": {"name": "detr", "image_size": (480, 640)},
    "swin-detr-b": {"name": "swin_detr", "image_size": (224, 224), "backbone": "swin_base", "overrides": {"stages": [4]}},
    "rt-detr-v2-r18": {
        "name": "rt_detr_v2",
        "image_size": (640, 640),
        # the published configuration of PekingU/rtdetr_v2_r18vd
        "overrides": {
            "backbone_config.depths": [2, 2, 2, 2],
            "backbone_config.layer_type": "basic",
            "backbone_config.hidden_sizes": [64, 128, 256, 512],
            "decoder_layers": 3,
            "hidden_expansion": 0.5,
        },
    },
}

OURS: dict[str, Scheme] = {
    "weight-only": WeightOnly(),
    "weight-only-int4": WeightOnly(bits=4, calibration_images=0),
    "dynamic": Dynamic(),
    "smoothquant-static": SmoothQuant(activations="static", alpha="auto"),
    "static": Static(),
    "unified": Unified(),
}
PEERS = ("ort-dynamic", "ort-static", "nncf", "nncf-transformer", "torch-compile", "torchao-weight-only", "torchao-dynamic")
FLOAT, EAGER = "float", "pytorch"


class Compiled(PyTorchRuntime):
    """PyTorch with `torch.compile`, at whatever batch comes first."""

    def __init__(self, detector: Detector, artifact: str, size_bytes: int) -> None:
        super().__init__(detector, artifact)
        self.plain = torch.compile(self.plain)
        self.size_bytes = size_bytes


class Builder:
    """Everyone's artefacts of one float detector, made in one folder. Each method gives the runtimes of one candidate.

    Args:
        detector: float.
        folder: where the files go.
        dataset: photographs to calibrate on, prepared for the detector.
        threads: of one call.
    """

    def __init__(self, detector: Detector, folder: Path, dataset: CocoDataset, images: int, threads: int) -> None:
        self.detector, self.folder, self.threads = detector, folder, threads
        chosen = torch.linspace(0, len(dataset) - 1, min(images, len(dataset))).round().long().tolist()
        self.dataset, self.images = Subset(dataset, chosen), len(chosen)
        self.float_file = export_onnx(detector, folder / "float.onnx")

    def pixels(self) -> Iterator[Any]:
        """(1, 3, H, W) float32, one photograph after the other."""
        for index in range(self.images):
            yield self.dataset[index][0][None].numpy()

    def build(self, candidate: str) -> list[Runtime]:
        if candidate == FLOAT:
            return [PyTorchRuntime(self.detector, "float"), *self.engines(self.float_file)]
        if candidate in OURS:
            return self.ours(candidate)
        makers: dict[str, Callable[[str], list[Runtime]]] = {"ort": self.onnxruntime, "nncf": self.nncf, "torch": self.torch}
        return next(make for prefix, make in makers.items() if candidate.startswith(prefix))(candidate)

    def ours(self, scheme: str) -> list[Runtime]:
        batches = DataLoader(self.dataset, batch_size=8, collate_fn=collate)
        quantized = quantize(self.detector, with_calibration(OURS[scheme], lambda _: self.images), batches)
        return self.engines(export_onnx(quantized, self.folder / f"{scheme}.onnx"))

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
        model = onnx.load(path)
        del model.metadata_props[:]
        onnx.helper.set_model_props(model, {KEY: onnx_metadata(self.float_file)})
        onnx.save(model, path)
        return self.engines(path)

    def nncf(self, candidate: str) -> list[Runtime]:
        import nncf

        nncf.set_log_level(logging.ERROR)
        model = read_onnx(self.float_file)
        kind = nncf.ModelType.TRANSFORMER if candidate == "nncf-transformer" else None
        samples = nncf.Dataset(list(self.pixels()), lambda x: {"pixel_values": x})
        model = nncf.quantize(model, samples, model_type=kind, subset_size=self.images)
        model.set_rt_info(onnx_metadata(self.float_file), KEY)
        path = self.folder / f"{candidate}.xml"
        import_openvino().save_model(model, path, compress_to_fp16=False)
        return [self.named(OpenVinoRuntime(path, self.threads), candidate)]

    def torch(self, candidate: str) -> list[Runtime]:
        detector = copy.deepcopy(self.detector)
        if candidate.startswith("torchao"):
            from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_

            config = Int8WeightOnlyConfig() if candidate == "torchao-weight-only" else Int8DynamicActivationInt8WeightConfig()
            quantize_(detector.model, config)
        file = self.folder / f"{candidate}.pt"
        torch.save(detector.state_dict(), file)
        return [Compiled(detector, candidate, file.stat().st_size)]

    def engines(self, path: Path) -> list[Runtime]:
        return [self.named(engine(path, self.threads), path.stem) for engine in (OnnxRuntime, OpenVinoRuntime)]

    @staticmethod
    def named(runtime: Runtime, candidate: str) -> Runtime:
        runtime.artifact = candidate
        return runtime


def compare(
    detector: Detector,
    data: Path,
    out: Path,
    candidates: list[str],
    calibration: int,
    repeats: int,
    threads: int,
    against: str,
    trained: bool,
) -> dict[str, Any]:
    """Make everything, evaluate it where the detector is trained, measure it, and return what `peers.json` holds."""
    train, val = (find_split(data, split) for split in ("train", "val"))
    transform = eval_transform(detector.preprocessing)
    builder = Builder(detector, out, CocoDataset(train, transform, detector.class_map), calibration, threads)
    runtimes, failures = [], {}
    for candidate in [FLOAT, *candidates]:
        try:
            made = builder.build(candidate)
            for runtime in made:  # an engine may refuse a peer's file, and torch.compile fails when first called
                runtime.run(torch.from_numpy(next(builder.pixels())), None)
            runtimes += made
        except Exception as error:  # whatever a peer raises is a result too
            failures[candidate] = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
    if FLOAT in failures:
        raise UserError(f"an engine cannot run the float model ({failures[FLOAT]}); name another detector")
    references = [
        next(
            index
            for index, other in enumerate(runtimes)
            if other.artifact == FLOAT and other.name == (runtime.name if against == "engine" else EAGER)
        )
        for runtime in runtimes
    ]
    # for random weights no photograph needs a label: the classes of the data set are the detector's
    rows = [dict(row) for row in measure(runtimes, val, repeats, references)]
    float_bytes = {row["runtime"]: row["size_bytes"] for row in rows if row["artifact"] == FLOAT}
    dataset = CocoDataset(val, transform, detector.class_map)
    for row, runtime in zip(rows, runtimes, strict=True):
        row["size_ratio"] = row["size_bytes"] / float_bytes[row["runtime"]]
        row["ap"] = coco.evaluate(runtime, dataset)[0].ap if trained else None
    return {"rows": rows, "failures": failures, "against": against, "repeats": repeats, "environment": environment()}


def markdown(results: dict[str, Any]) -> str:
    """The rows as a table, engine by engine."""
    lines = ["| engine | model | AP | ms | p90 ms | against float | MB | bytes |", "|---|---|--:|--:|--:|--:|--:|--:|"]
    for row in sorted(results["rows"], key=lambda row: row["runtime"], reverse=True):
        ap = "–" if row["ap"] is None else f"{row['ap']:.3f}"
        speed = f"{row['speedup']:.2f}× ({row['speedup_low']:.2f}–{row['speedup_high']:.2f})"
        speed += f", {SLOWER}" if surely_slower(row) else ""
        times = f"{row['latency_ms']:.1f} | {row['latency_p90_ms']:.1f}"
        size = f"{row['size_bytes'] / 1e6:.2f} | {row['size_ratio']:.2f}×"
        lines.append(f"| {row['runtime']} | {row['artifact']} | {ap} | {times} | {speed} | {size} |")
    lines += [f"\n{candidate} failed: {reason}" for candidate, reason in results["failures"].items()]
    where = results["environment"]
    reference = "the float file on the same engine" if results["against"] == "engine" else "eager float PyTorch"
    lines.append(
        f"\n{results['repeats']} interleaved repeats of one photograph; against {reference}, 95 % interval in brackets. "
        f"{where['processor']}, {where['threads']} threads, torch {where['torch']}, onnxruntime {where['onnxruntime']}, "
        f"openvino {where['openvino']}."
    )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help=f"a saved float detector of a fixed size, or one of {', '.join(PUBLISHED)}")
    parser.add_argument("--data", type=Path, required=True, help="a data folder: calibration on train, the rest on val")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--calibration", type=int, default=64, help="photographs")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--against", choices=("engine", "eager"), default="engine")
    parser.add_argument("--candidates", nargs="*", default=[*OURS, *PEERS], choices=[*OURS, *PEERS])
    arguments = parser.parse_args()
    if min(arguments.calibration, arguments.repeats, arguments.threads) < 1:
        parser.error("--calibration, --repeats and --threads: give 1 or more")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    try:
        if arguments.model in PUBLISHED:
            classes = class_map_of(find_split(arguments.data, "train"))
            detector = create(class_map=classes, **PUBLISHED[arguments.model]).eval()
        else:
            detector = load(arguments.model)
            if scheme_of(detector) is not None:
                raise UserError(f"{arguments.model} is quantized already; name the float detector it was made from")
        if detector.preprocessing.size is None:
            raise UserError(f"{arguments.model} keeps the aspect ratio of photographs; name a detector of a fixed size")
        if arguments.out.is_file():
            raise UserError(f"{arguments.out} is a file; name a folder")
        arguments.out.mkdir(parents=True, exist_ok=True)
        results = compare(
            detector,
            arguments.data,
            arguments.out,
            arguments.candidates,
            arguments.calibration,
            arguments.repeats,
            arguments.threads,
            arguments.against,
            trained=arguments.model not in PUBLISHED,
        )
    except UserError as error:
        parser.exit(2, f"peers.py: {error}\n")
    results["model"] = arguments.model
    write_json(arguments.out / "peers.json", results)
    write_text(arguments.out / "peers.md", markdown(results))
    print(markdown(results))


if __name__ == "__main__":
    main()
