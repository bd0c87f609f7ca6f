"""`evaluate`, `export`, `predict`, `benchmark`: what is done with a finished detector."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.utils.data import Subset

from leandetr.data.annotations import Split, read_annotations
from leandetr.data.coco import CocoDataset
from leandetr.data.splits import split_state
from leandetr.deployment.benchmark import Measurement, measure
from leandetr.deployment.mobile_export import FORMATS, export_mobile
from leandetr.deployment.onnx import check_onnx, export_onnx
from leandetr.deployment.openvino import check_xml, convert_openvino
from leandetr.deployment.opsets import OPSET
from leandetr.deployment.predict import predict_sources
from leandetr.deployment.runtime import Runtime
from leandetr.deployment.runtimes import load_answering, open_runtime
from leandetr.errors import UserError, unknown
from leandetr.evaluation import coco
from leandetr.evaluation.coco import CocoMetrics
from leandetr.files import claiming, read_json
from leandetr.inputs import weights_state
from leandetr.machine import chosen_device, reading_processes
from leandetr.processes import say, share
from leandetr.progress import counting
from leandetr.shards import Shards
from leandetr.verbs.data import Data, annotations_of, split_of

TARGETS = ("onnx", "tensorrt", "openvino", *FORMATS)  # of `export`


def evaluate(
    model: str | Path,
    data: Data,
    split: str = "val",
    engine: str | None = None,
    queries: str | None = None,
    out: Path | None = None,
) -> CocoMetrics:
    """COCO's numbers of a saved detector, an exported file, or a JSON in COCO's results format, on a split.

    data: as in `train`. For a JSON of results the images need not be there, and {"val": "annotations.json"} is enough.
    queries: "object", "distillation" or "both", for a saved detector with distillation queries. out: a folder that keeps the
    detections, as `predictions.json`; an evaluation that was killed goes on there.

    Processes that `torchrun` or `accelerate launch` started together share the images, and each returns the numbers of all.
    """
    return coco.evaluate_results(*detections_of(model, data, split, engine, queries, out))


def detections_of(
    model: str | Path,
    data: Data,
    split: str = "val",
    engine: str | None = None,
    queries: str | None = None,
    out: Path | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The objects of a split as a COCO dictionary, and what a model (or file of results) finds there, see `evaluate`."""
    if str(model).endswith(".json"):
        if queries is not None:
            raise UserError(f"{model} holds detections, not a detector with a choice of queries; leave out --queries")
        if out is not None:
            raise UserError(f"{model} holds detections already, which need not be kept; leave out --out")
        known = read_annotations(annotations_of(data, split))
        results = read_json(Path(model))
        if not isinstance(results, list):
            raise UserError(f"{model} is not a list of detections in COCO's results format; name the file of results")
        return known.ground_truth(), results
    chosen = split_of(data, split)
    runtime = open_runtime(model, engine=engine, queries=queries, device=chosen_device())
    dataset = CocoDataset(chosen, runtime.transform, runtime.class_map)
    if out is None:
        return dataset.ground_truth(), _found(runtime, dataset)
    with claiming(out, ["evaluate", model, split, queries]):
        state = [weights_state("model", model), split_state(split, chosen), runtime.name, queries]
        return dataset.ground_truth(), _kept(runtime, dataset, Path(out), state)


def evaluate_runtime(runtime: Runtime, split: Split) -> tuple[CocoMetrics, list[dict[str, Any]]]:
    """The numbers and the detections (COCO's results format) of a runtime on a split."""
    dataset = CocoDataset(split, runtime.transform, runtime.class_map)
    results = _found(runtime, dataset)
    return coco.evaluate_results(dataset.ground_truth(), results), results


def _found(runtime: Runtime, dataset: CocoDataset) -> list[dict[str, Any]]:
    """The detections on all images, which other processes read where there are cores for it."""
    with counting("images", len(share(range(len(dataset))))) as step:
        return coco.predict_together(
            runtime, dataset, workers=reading_processes(), progress=lambda done, _: step(done), device=runtime.device
        )


def _kept(runtime: Runtime, dataset: CocoDataset, out: Path, state: Any) -> list[dict[str, Any]]:
    """The same, kept in `out` shard by shard on the way."""
    shards = Shards(out, state, len(dataset))
    own = Subset(dataset, [index for number in shards.mine for index in shards.blocks[number]])
    with counting("images", len(own)) as step:
        found = coco.predictions(
            runtime,
            own,
            dataset.class_map,
            workers=reading_processes(),
            progress=lambda done, _: step(done),
            device=runtime.device,
        )
        for number in shards.mine:
            rows = [row for rows in islice(found, len(shards.blocks[number])) for row in rows]
            shards.keep(number, rows, len(rows))
    file = out / "predictions.json"
    say(f"{file}: {shards.merge(file)}")
    return read_json(file)


def export(  # noqa: PLR0913 - what a file can be is what is asked
    model: str | Path,
    out: Path,
    to: str = "onnx",
    image_size: tuple[int, int] | None = None,
    queries: str | None = None,
    end_to_end: bool = False,
    opset: int = OPSET,
    half: bool = False,
) -> Path:
    """Write a saved detector as an .onnx file, as one for TensorRT, as OpenVINO's .xml and .bin, as ExecuTorch's .pte, as
    LiteRT's .tflite or as Core ML's .mlpackage.

    to: "onnx"; "tensorrt", an .onnx with integers as TensorRT takes them, of a detector quantized with
    `Static(target="tensorrt")`; "openvino"; or, of float detectors and those of `Static(target="xnnpack")`, "executorch" or
    "litert"; or, of float detectors, "coreml", which nothing here runs. queries: as in `evaluate`.
    end_to_end: from the bytes of a photograph to detections in one graph. opset: of ONNX. half: products in float16, of a float
    detector's .onnx; of Core ML, everything.
    """
    out = Path(out)
    if to not in TARGETS:
        raise unknown("format", to, TARGETS)
    if to in FORMATS:
        asked = {"--half": half and not FORMATS[to].halves, "--end-to-end": end_to_end, f"--opset {opset}": opset != OPSET}
        if refused := next((option for option, given in asked.items() if given), None):
            raise UserError(f"{out}: {refused} is of ONNX files; leave it out, or add --to onnx")
        FORMATS[to].check(out)  # before anything is loaded
        return export_mobile(load_answering(model, queries), out, to, image_size, half)
    if to != "openvino":
        check_onnx(out)
        options: dict[str, Any] = {"opset": opset, "end_to_end": end_to_end, "half": half, "tensorrt": to == "tensorrt"}
        return export_onnx(load_answering(model, queries), out, image_size, **options)
    if half:
        raise UserError(f"{out}: OpenVINO chooses its precision itself; leave out --half, or write an .onnx")
    check_xml(out)
    with TemporaryDirectory() as folder:
        file = export_onnx(
            load_answering(model, queries), Path(folder) / "model.onnx", image_size, opset=opset, end_to_end=end_to_end
        )
        return convert_openvino(file, out)


def predict(  # noqa: PLR0913 - as of `predict_sources`
    model: str | Path,
    sources: str | Path | int | Sequence[str | Path | int],
    out: Path,
    threshold: float = 0.3,
    annotations: Path | None = None,
    engine: str | None = None,
    queries: str | None = None,
    pictures: bool = True,
) -> Path:
    """Detections of a saved detector or exported file on images, folders, patterns, videos and cameras: drawn pictures and
    videos, predictions.json, and JSON lines of every video in `out`.

    sources: one or several of a file, a folder, a pattern ("photos/*.jpg") and a camera's number.
    annotations: COCO JSON; with it predictions.json is in COCO's results format, see `predict_sources`. queries: as in
    `evaluate`. pictures: whether to draw. Processes share the work as in `evaluate`, and one that was killed goes on.
    """
    form = "plain" if annotations is None else "coco"
    if isinstance(sources, str | Path | int):
        sources = [sources]
    runtime = open_runtime(model, engine=engine, queries=queries, device=chosen_device())
    with claiming(out, ["predict", model, form, queries]):
        state = [weights_state("model", model), runtime.name, queries]
        return predict_sources(runtime, sources, Path(out), threshold, form, annotations, pictures, state)


def benchmark(
    models: Sequence[str | Path],
    data: Data,
    engine: str | None = None,
    repeats: int = 50,
    threads: int | None = None,
    device: torch.device | str = "cpu",
    batches: Sequence[int] = (1,),
) -> list[Measurement]:
    """Latency of one photograph for each model, measured in turn on the same images; ratios are to the first model.

    device: of PyTorch. batches: so many photographs in a call, one after the other; a row a model and batch.
    """
    runtimes = [open_runtime(model, threads=threads, engine=engine, device=device) for model in models]
    split = split_of(data, "val")
    return [row for batch in batches for row in measure(runtimes, split, repeats=repeats, batch=batch)]
