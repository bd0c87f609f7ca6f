"""`leandetr data`: make, check and convert data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leandetr.cli.main import app, out_console
from leandetr.cli.options import Json, OneSplit

data_app = typer.Typer(help="Make, check and convert data sets.", no_args_is_help=True, rich_markup_mode="markdown")
app.add_typer(data_app, name="data")


@data_app.command("shapes")
def data_shapes(
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    train: Annotated[int, typer.Option(help="Training images.", min=1)] = 800,
    val: Annotated[int, typer.Option(help="Validation images.", min=1)] = 200,
    image_size: Annotated[tuple[int, int], typer.Option(help="Height and width in pixels.")] = (160, 160),
    seed: Annotated[int, typer.Option(help="Equal seeds give equal files.")] = 0,
) -> None:
    """Write the embedded synthetic set: textured shapes over textured backgrounds.

    Example: `leandetr data shapes --out shapes --train 1000 --val 200 --image-size 128 128`
    """
    from leandetr.data.shapes import write_shapes

    out_console.print(str(write_shapes(out, train, val, image_size, seed)))


@data_app.command("check")
def data_check(
    folder: Annotated[
        Path | None, typer.Argument(help="Folder in any layout that is read, a YOLO YAML, or hf://OWNER/NAME.", metavar="DATA")
    ] = None,
    annotations: Annotated[Path | None, typer.Option(help="In place of the folder: COCO JSON.")] = None,
    images: Annotated[Path | None, typer.Option(help="In place of the folder: folder of the images.")] = None,
    json: Json = None,
) -> None:
    """What a data set holds, and every fault with counts and examples; exit status 1 if there is any.

    Example: `leandetr data check DATA`
    """
    from dataclasses import asdict

    from leandetr.data.check import check, faults_table, notes, summarise
    from leandetr.data.duplicates import near_duplicates
    from leandetr.data.splits import DataFolder
    from leandetr.files import write_json
    from leandetr.verbs import opened, split_of

    source = opened(OneSplit(folder, annotations, images).source())
    if isinstance(source, DataFolder):
        found = source.recognised
        for text in (f"{found.place}: {found.layout}", *(f"  {text}" for text in found.said)):
            out_console.print(text, highlight=False, soft_wrap=True)
    names = source.splits if isinstance(source, DataFolder) else ("train",)
    splits = {name: split_of(source, name) for name in names}
    checked = {name: (summarise(split), check(split)) for name, split in splits.items()}
    for name, (summary, faults) in checked.items():
        out_console.print(f"{name}: {summary}", highlight=False)
        for text in notes(splits[name]):
            out_console.print(f"  {text}", highlight=False, soft_wrap=True)
        out_console.print(faults_table(faults) if faults else "  no faults")
    shared = near_duplicates(splits)
    if shared:
        out_console.print(faults_table(shared))
    if json:
        written = {name: asdict(summary) | {"faults": list(map(asdict, faults))} for name, (summary, faults) in checked.items()}
        write_json(json, written | ({"between": list(map(asdict, shared))} if shared else {}))
    if shared or any(faults for _, faults in checked.values()):
        raise typer.Exit(1)


@data_app.command("convert")
def data_convert(
    source: Annotated[Path, typer.Argument(help="Folder in another layout than COCO's, or a YOLO YAML.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    form: Annotated[str | None, typer.Option("--format", help="voc, yolo, csv or huggingface; recognised by default.")] = None,
) -> None:
    """Make a folder in another layout a COCO folder, class names kept.

    Example: `leandetr data convert VOCdevkit/VOC2007 --out voc`
    """
    from leandetr.data.convert import convert

    out_console.print(str(convert(source, out, form)))
