"""`leandetr analyze ...`: what happens inside detectors, in numbers and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leandetr.cli.main import app, err_console, out_console
from leandetr.cli.options import Device, OneSplit, take_device, with_groups
from leandetr.terminal import plain_table

analyze_app = typer.Typer(
    help="Look inside detectors: numbers as JSON, and pictures that explain them.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
app.add_typer(analyze_app, name="analyze")

Models = Annotated[list[str], typer.Argument(help="Saved detectors.")]
Trainings = Annotated[
    list[str],
    typer.Argument(help="Saved detectors; a training that kept epochs (training.keep_epochs) stands for all of them."),
]
Out = Annotated[Path, typer.Option(help="Folder for the JSON and the pictures; those of other analyses in it stay.")]
Part = Annotated[str, typer.Option("--split", help="train or val.")]
Limit = Annotated[int | None, typer.Option(help="So many images, evenly spread over the split; all by default.", min=1)]
FloatDetector = Annotated[str, typer.Argument(help="Saved float detector.")]
FewImages = Annotated[int, typer.Option(help="So many images, evenly spread over the split.", min=1)]


@analyze_app.command()
@with_groups
def similarity(
    models: Trainings, data: OneSplit, out: Out, split: Part = "val", limit: Limit = None, device: Device = "auto"
) -> None:
    """Layer by layer, how alike object and distillation queries are: the mean cosine of pairs between and within the sets, the
    cosine of the sets' means, and the correlation of the mean state with that of a training's first kept epoch.

    Example: `leandetr analyze similarity runs/student --data DATA --out runs/student-queries`
    """
    take_device(device)
    from leandetr.analysis.similarity import similarity as analyze
    from leandetr.verbs import split_of

    found = analyze(models, split_of(data.source(), split), out, limit)
    cosines_of = ("between the sets", "of their means", "object", "distillation", "to the first")
    table = plain_table("model", "decoder layer", *cosines_of)
    for model in found["models"]:
        for layer in model["layers"]:
            cosines = (layer[name] for name in ("between", "of_means", "within_object", "within_distillation", "to_first"))
            shown = ("–" if cosine is None else f"{cosine:.3f}" for cosine in cosines)
            table.add_row(model["name"], str(layer["layer"]), *shown)
    out_console.print(table)
    out_console.print(str(out / "similarity.png"))


@analyze_app.command()
@with_groups
def stability(
    models: Models, data: OneSplit, out: Out, split: Part = "val", limit: Limit = None, device: Device = "auto"
) -> None:
    """How much the matching of queries with objects changes between decoder stages (instability IS).

    Example: `leandetr analyze stability runs/teacher runs/student/training/epoch-1 --data DATA --out runs/stability`
    """
    take_device(device)
    from leandetr.analysis.stability import stability as analyze
    from leandetr.verbs import split_of

    found = analyze(models, split_of(data.source(), split), out, limit)
    table = plain_table("model", "stages", "IS, queries an image", "objects moved")
    for model in found["models"]:
        for stage in model["stages"]:
            error = f"{stage['instability']:.2f} ± {stage['instability_error']:.2f}"
            table.add_row(model["name"], f"{stage['from']} to {stage['to']}", error, f"{100 * stage['objects_moved']:.1f} %")
    out_console.print(table)
    out_console.print(str(out / "stability.png"))


@analyze_app.command()
@with_groups
def masks(
    models: Models,
    data: OneSplit,
    out: Out,
    image: Annotated[list[str] | None, typer.Option(help="File name of an image to draw; repeatable.")] = None,
    split: Part = "val",
    limit: Limit = None,
    device: Device = "auto",
) -> None:
    """Where features are active and queries look, drawn over photographs; the first model is the one compared with.

    Example: `leandetr analyze masks runs/teacher runs/student --data DATA --image 000001.jpg --out runs/masks`
    """
    take_device(device)
    from leandetr.analysis.masks import masks as analyze
    from leandetr.verbs import split_of

    found = analyze(models, split_of(data.source(), split), out, image or (), limit)
    for model in found["models"]:
        heads = (
            "cells",
            "active inside",
            "mask inside",
            "peak inside",
            "peak on object",
            "active like first",
            "mask like first",
        )
        table = plain_table(*heads, title=model["name"])
        for level in model["levels"]:
            height, width = level.pop("cells")
            table.add_row(f"{height} x {width}", *("–" if number is None else f"{number:.2f}" for number in level.values()))
        out_console.print(table)
    out_console.print(f"objects cover {100 * found['area_inside']:.0f} % of the images\n{out / 'masks.json'}")


@analyze_app.command()
@with_groups
def information(
    models: Trainings, data: OneSplit, out: Out, split: Part = "val", limit: Limit = None, device: Device = "auto"
) -> None:
    """The information plane along a training, and how the queries are distributed.

    Example: `leandetr analyze information runs/teacher runs/student --data DATA --out runs/information`
    """
    take_device(device)
    from leandetr.analysis.information import information as analyze
    from leandetr.verbs import split_of

    found = analyze(models, split_of(data.source(), split), out, limit)
    table = plain_table("model", "I(X; E), bits", "I(y; E, q)", "of class", "of box", "4-bit query codes")
    for model in found["models"]:
        parts = (model[name] for name in ("input", "output", "class", "box"))
        shown = (f"{p['bits']:.2f}" + ("" if p["error"] is None else f" ± {p['error']:.2f}") for p in parts)
        layers = model["queries"]["layers"] if model["queries"] else []
        table.add_row(model["name"], *shown, f"{layers[-1]['codes_after']:.2f}" if layers else "–")
    out_console.print(table)
    out_console.print(f"the classes' entropy is {found['class_entropy']:.2f} bits\n{out / 'information.png'}")


@analyze_app.command()
@with_groups
def sensitivity(
    model: FloatDetector,
    data: OneSplit,
    out: Out,
    split: Part = "train",
    limit: FewImages = 32,
    device: Device = "auto",
) -> None:
    """Which layers suffer most from integers: the error of every layer's output, alone.

    Example: `leandetr analyze sensitivity runs/student --data DATA --out runs/sensitivity`
    """
    take_device(device)
    from leandetr.analysis.sensitivity import sensitivity as analyze
    from leandetr.verbs import split_of

    found = analyze(model, split_of(data.source(), split), out, limit)
    table = plain_table("layer", *found["candidates"], numbers=found["candidates"])
    for layer in sorted(found["layers"], key=lambda layer: max(layer["errors"].values()), reverse=True)[:10]:
        shown = (layer["errors"].get(candidate) for candidate in found["candidates"])
        table.add_row(layer["name"], *("–" if error is None else f"{error:.2e}" for error in shown))
    out_console.print(table)
    out_console.print(str(out / "sensitivity.png"))


@analyze_app.command()
@with_groups
def structures(
    model: FloatDetector,
    data: OneSplit,
    out: Out,
    split: Part = "train",
    limit: FewImages = 32,
    device: Device = "auto",
) -> None:
    """Which layers can do with fewer units: the loss without a quarter, half and three quarters of one layer's, before pruning.

    Example: `leandetr analyze structures runs/student --data DATA --out runs/structures`
    """
    take_device(device)
    from leandetr.pruning.sensitivity import SHARES, worst_first
    from leandetr.pruning.sensitivity import structures as analyze
    from leandetr.verbs import split_of

    found = analyze(model, split_of(data.source(), split), out, limit)
    for sentence in found["left_out"]:
        err_console.print(f"left out: {sentence}", soft_wrap=True)
    shares = [f"-{share:.0%}" for share in SHARES]
    table = plain_table("layer", "structure", "units", "of all", *shares, numbers=("units", "of all", *shares))
    for layer in worst_first(found)[:10]:
        losses = (f"{loss / found['loss'] - 1:+.1%}" for _, loss in layer["losses"])
        name = layer["name"].removeprefix("model.")
        table.add_row(name, layer["structure"], str(layer["width"]), f"{layer['multiply_adds']:.1%}", *losses)
    out_console.print(table)
    out_console.print(str(out / "structures.png"))


@analyze_app.command()
def frontier(
    file: Annotated[Path, typer.Argument(help="The frontier.json of a trimming.")],
    out: Out,
) -> None:
    """AP over latency of what `leandetr trim` measured, with the point that it chose.

    Example: `leandetr analyze frontier runs/student-trimmed/frontier.json --out runs/frontier`
    """
    from leandetr.analysis.frontier import frontier as analyze
    from leandetr.cli.trim import frontier_table

    out_console.print(frontier_table(analyze(file, out)))
    out_console.print(str(out / "frontier.png"))
