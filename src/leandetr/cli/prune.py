"""`leandetr prune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from leandetr.cli.main import app, err_console, out_console
from leandetr.cli.options import Device, OneSplit, take_device, with_groups
from leandetr.terminal import plain_table


@app.command()
@with_groups
def prune(
    model: Annotated[str, typer.Argument(help="Saved float detector.")],
    data: OneSplit,
    out: Annotated[Path, typer.Option(help="Folder for the pruned detector and pruning.json.")],
    ratio: Annotated[
        float | None, typer.Option(help="Of the whole detector's multiply-adds that leave, between 0 and 1.")
    ] = None,
    target_macs: Annotated[
        float | None, typer.Option(help="In its place: multiply-adds of one image that stay at most, such as 2.5e9.")
    ] = None,
    target_latency_ms: Annotated[
        float | None, typer.Option(help="In its place: milliseconds a photograph to get to on --engine.")
    ] = None,
    engine: Annotated[str, typer.Option(help="Whose latency counts: pytorch, onnxruntime or openvino.")] = "onnxruntime",
    structures: Annotated[
        str, typer.Option(help="What may leave: hidden units (ffn), attention heads, channels inside convolutional blocks.")
    ] = "ffn,heads,channels",
    importance: Annotated[
        str, typer.Option(help="taylor: what the loss would change without a unit; magnitude: of its weights.")
    ] = "taylor",
    calibration_images: Annotated[int, typer.Option(help="Training photographs that the loss is computed on.", min=1)] = 128,
    device: Device = "auto",
) -> None:
    """Leave the least important parts of a detector out, until --ratio of its multiply-adds has left; training recovers it.

    Hidden units, attention heads and channels of all layers are ranked together, on photographs of train; every layer gets a
    width of its own.

    Example: `leandetr prune runs/student --data DATA --ratio 0.3 --out runs/pruned`, then `leandetr distill --data DATA
    --student runs/pruned --teacher runs/student --method logits --out runs/recovered`
    """
    take_device(device)
    from leandetr import verbs
    from leandetr.pruning import Pruning

    asked: Any = {
        "ratio": ratio,
        "target_macs": target_macs,
        "target_latency_ms": target_latency_ms,
        "engine": engine,
        "structures": [part.strip() for part in structures.split(",")],
        "importance": importance,
        "calibration_images": calibration_images,
    }
    _, found = verbs.prune(model, data.source(), out, Pruning(**asked))
    for sentence in found["left_out"]:
        err_console.print(f"left out: {sentence}", soft_wrap=True)
    out_console.print(layer_table(found))
    for line in in_words(found):
        out_console.print(line, soft_wrap=True)


def layer_table(found: dict[str, Any]) -> Table:
    """A pruned layer, attention or block a row."""
    table = plain_table("layer", "structure", "units", "kept", numbers=("units", "kept"))
    for layer in found["layers"]:
        table.add_row(layer["name"].removeprefix("model."), layer["structure"], str(layer["width"]), str(layer["kept"]))
    return table


def in_words(found: dict[str, Any]) -> list[str]:
    """What became less, a line each."""
    height, width = found["image_size"]
    lines = []
    for what, words in (("parameters", "parameters"), ("multiply_adds", f"multiply-adds of {height} x {width}")):
        before, after = found[what]["before"], found[what]["after"]
        lines.append(f"{words}: {after / 1e6:.2f} M, were {before / 1e6:.2f} M (-{1 - after / before:.1%})")
    if "latency_ms" in found:
        before, after = found["latency_ms"]["before"], found["latency_ms"]["after"]
        speedup = "{speedup:.2f} times as fast [{speedup_low:.2f}, {speedup_high:.2f}]".format(**found)
        lines.append(f"{found['engine']}: {after:.2f} ms, were {before:.2f} ms, {speedup}")
    return lines
