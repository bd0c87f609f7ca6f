"""`evaluate`, `export`, `predict`, `benchmark`: what is done with a finished detector."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from leandetr.cli.main import app, out_console
from leandetr.cli.options import Device, Engine, Json, OneSplit, Queries, Threads, take_device, with_groups
from leandetr.terminal import plain_table


@app.command()
@with_groups
def evaluate(
    model: Annotated[
        str,
        typer.Argument(help="Saved detector, hub id, published .pth, exported file, torchvision's NAME, or a JSON of results."),
    ],
    data: OneSplit,
    split: Annotated[str, typer.Option(help="train or val.")] = "val",
    engine: Engine = None,
    voc: Annotated[bool, typer.Option("--voc", help="Also Pascal VOC's AP at IoU 0.5, all points interpolated.")] = False,
    queries: Queries = None,
    device: Device = "auto",
    out: Annotated[
        Path | None, typer.Option(help="Folder that keeps the detections; a killed evaluation goes on there.")
    ] = None,
    json: Json = None,
) -> None:
    """COCO's twelve numbers and the AP of every class. Of a JSON of results, `--annotations FILE` is enough: no image is read.

    Example: `leandetr evaluate runs/student --data DATA --json student.json`
    """
    take_device(device)
    from leandetr import verbs
    from leandetr.evaluation import evaluate_results, voc_metrics
    from leandetr.files import write_json
    from leandetr.processes import is_main

    found = verbs.detections_of(model, data.source(), split, engine, queries, out)
    if not is_main():
        return
    metrics = evaluate_results(*found)
    numbers: dict[str, Any] = metrics.as_dict() | {"per_class": metrics.per_class}
    shown = metrics.as_dict() | {f"AP of {k}": v for k, v in metrics.per_class.items()}
    if voc:
        numbers["voc"] = voc_metrics(*found)
        shown["VOC AP50"] = numbers["voc"]["ap50"]
        shown |= {f"VOC AP50 of {k}": v for k, v in numbers["voc"]["per_class"].items()}
    if json:
        write_json(json, _defined(numbers))
    table = plain_table("metric", "value", numbers=["value"])
    for name, value in shown.items():
        table.add_row(name, f"{value:.3f}" if value >= 0 else "–")
    out_console.print(table)


def _defined(numbers: Any) -> Any:
    """The numbers with None for COCO's -1, which no mean should take for an AP."""
    if isinstance(numbers, dict):
        return {name: _defined(value) for name, value in numbers.items()}
    return numbers if numbers >= 0 else None


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="Saved detector, hub id or published .pth, float or quantized.")],
    out: Annotated[Path, typer.Option(help="The .onnx, .xml, .pte, .tflite or .mlpackage file.")],
    to: Annotated[
        str,
        typer.Option(help="onnx, tensorrt (an .onnx as it takes them quantized), openvino, executorch, litert or coreml."),
    ] = "onnx",
    image_size: Annotated[
        tuple[int, int] | None, typer.Option(help="Fixed height and width; the model's own by default.")
    ] = None,
    queries: Queries = None,
    end_to_end: Annotated[
        bool, typer.Option("--end-to-end", help="uint8 photographs of any size in; scores, labels and boxes out.")
    ] = False,
    half: Annotated[
        bool,
        typer.Option(
            "--half", help="Of a float detector's .onnx: products in float16, boxes in float32. Of a .mlpackage: all."
        ),
    ] = False,
    opset: Annotated[int, typer.Option(help="Of ONNX, from 17; integer weights need 21, but for tensorrt.")] = 21,
) -> None:
    """Write one file that works alone: graph, weights, classes, preprocessing.

    Example: `leandetr export runs/student-static --to onnx --out student.onnx`
    """
    from leandetr import verbs

    path = verbs.export(model, out, to, image_size, queries, end_to_end, opset, half)
    files = [path, path.with_suffix(".bin")] if to == "openvino" else path.rglob("*") if path.is_dir() else [path]
    out_console.print(f"{path}  {sum(file.stat().st_size for file in files if file.is_file()) / 1e6:.2f} MB")


@app.command()
def predict(
    model: Annotated[str, typer.Argument(help="Saved detector, hub id, published .pth, exported file, or torchvision's NAME.")],
    sources: Annotated[
        list[str],
        typer.Argument(help="Images, videos, folders with all below them, patterns ('photos/*.jpg'), a camera's number (0)."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the drawn pictures and videos and predictions.json; by default runs/predict-MODEL."),
    ] = None,
    threshold: Annotated[float, typer.Option(help="Least score of a box.", min=0, max=1)] = 0.3,
    form: Annotated[str, typer.Option("--format", help="plain, or coco for COCO's results format.")] = "plain",
    annotations: Annotated[Path | None, typer.Option(help="COCO JSON whose image ids the coco format uses.")] = None,
    engine: Engine = None,
    queries: Queries = None,
    pictures: Annotated[bool, typer.Option(help="Draw them; not needed where photographs are labelled for a student.")] = True,
    device: Device = "auto",
) -> None:
    """Draw the boxes found on photographs and videos and write them down; a video's frame by frame, as JSON lines.

    Example: `leandetr predict student.onnx PHOTOS clip.mp4 --out pictures`
    """
    take_device(device)
    from leandetr import verbs
    from leandetr.deployment.predict import check_format

    check_format(form, annotations)
    out = out or Path("runs", f"predict-{Path(model).stem}")
    file = verbs.predict(model, sources, out, threshold, annotations if form == "coco" else None, engine, queries, pictures)
    out_console.print(str(file))


@app.command()
@with_groups
def benchmark(
    models: Annotated[
        list[str], typer.Argument(help="Saved detectors and exported files; ratios are to the first, on its engine.")
    ],
    data: OneSplit,
    engine: Engine = None,
    repeats: Annotated[int, typer.Option(help="Interleaved rounds.", min=5)] = 50,
    threads: Threads = None,
    device: Device = "cpu",
    batch: Annotated[list[int] | None, typer.Option(help="Photographs in a call, 1 by default; repeatable.", min=1)] = None,
    json: Json = None,
) -> None:
    """Latency and throughput of several models, measured in turn on the same photographs.

    Example: `leandetr benchmark runs/student student.onnx --data DATA --json latency.json`
    """
    if device != "cpu":
        take_device(device)
    from leandetr import verbs
    from leandetr.deployment.benchmark import environment
    from leandetr.files import write_json
    from leandetr.machine import chosen_device

    taken = "cpu" if device == "cpu" else chosen_device()
    found = verbs.benchmark(models, data.source(), engine, repeats, threads, taken, batch or (1,))
    if json:
        write_json(json, {"environment": environment(), "rows": found})
    out_console.print(latency_table(found))
    for row in found:
        if row["unpacked"]:
            what = f"{row['unpacked']} integer weights unpacked at load in {row['unpack_seconds']:.1f} s"
            out_console.print(f"{row['artifact']} on {row['runtime']}: {what}")


def latency_table(found: list[Any]) -> Table:
    """A `Measurement` a row; what is the same for all of them stands above."""
    from leandetr.report.rows import surely_slower

    given = {"on": "runtime", "device": "device", "batch": "batch"}
    apart = {title: key for title, key in given.items() if len({row[key] for row in found}) > 1}
    alike = ", ".join(f"{title} {found[0][key]}" for title, key in given.items() if title not in apart)
    throughput = {"images/s": "images_per_second"} if "batch" in apart or found[0]["batch"] > 1 else {}
    times = {"ms": "latency_ms", "p90 ms": "latency_p90_ms"} | throughput
    table = plain_table("artifact", *apart, *times, "MB", "speed-up", numbers=("batch", *times, "MB"), title=alike or None)
    names = [row["artifact"] for row in found]
    folder = f"{Path(names[0]).parent}/"
    within = all(name.startswith(folder) for name in names)  # then all are shown without it
    for row in found:
        ratio = "–"
        if row["speedup"] is not None:
            ratio = f"{row['speedup']:.2f} [{row['speedup_low']:.2f}, {row['speedup_high']:.2f}]"
        slower = f", slower than {row['reference']}" if surely_slower(row) and row["artifact"] != names[0] else ""
        numbers = [f"{row[key]:.1f}" for key in times.values()]
        size = f"{row['size_bytes'] / 1e6:.2f}"
        name = row["artifact"].removeprefix(folder if within else "")
        table.add_row(name, *(str(row[key]) for key in apart.values()), *numbers, size, ratio + slower)
    return table
