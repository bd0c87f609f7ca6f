"""`leandetr prune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from leandetr.cli.main import app, err_console, out_console
from leandetr.cli.options import Device, OneSplit, take_device, with_groups


@app.command()
@with_groups
def prune(
    model: Annotated[str, typer.Argument(help="Saved float detector.")],
    data: OneSplit,
    ratio: Annotated[float, typer.Option(help="Of the feed-forward layers' multiply-adds, between 0 and 1.")],
    out: Annotated[Path, typer.Option(help="Folder for the pruned detector and pruning.json.")],
    importance: Annotated[
        str, typer.Option(help="taylor: what the loss would change without a unit; magnitude: of its weights.")
    ] = "taylor",
    calibration_images: Annotated[int, typer.Option(help="Training photographs that the loss is computed on.", min=1)] = 128,
    device: Device = "auto",
) -> None:
    """Leave the least important hidden units of a detector's feed-forward layers out; training recovers what that costs.

    Units of encoder and decoder are ranked together, on photographs of train; every layer gets a width of its own.

    Example: `leandetr prune runs/student --data DATA --ratio 0.3 --out runs/pruned`, then `leandetr distill --data DATA
    --student runs/pruned --teacher runs/student --method logits --out runs/recovered`
    """
    take_device(device)
    from leandetr import verbs
    from leandetr.pruning import Pruning

    asked: Any = {"ratio": ratio, "importance": importance, "calibration_images": calibration_images}
    _, found = verbs.prune(model, data.source(), out, Pruning(**asked))
    for sentence in found["left_out"]:
        err_console.print(f"left out: {sentence}", markup=False, soft_wrap=True)
    out_console.print(layer_table(found))
    height, width = found["image_size"]
    for what, words in (("parameters", "parameters"), ("multiply_adds", f"multiply-adds of {height} x {width}")):
        before, after = found[what]["before"], found[what]["after"]
        out_console.print(
            f"{words}: {after / 1e6:.2f} M, were {before / 1e6:.2f} M (-{1 - after / before:.1%})", soft_wrap=True
        )


def layer_table(found: dict[str, Any]) -> Table:
    """A feed-forward layer a row."""
    table = Table("layer", "units", "kept")
    for layer in found["layers"]:
        table.add_row(layer["name"].removeprefix("model."), str(layer["width"]), str(layer["kept"]))
    return table
