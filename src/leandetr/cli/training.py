"""`leandetr train`, `leandetr distill` and `leandetr pretrain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leandetr.cli.main import app, out_console
from leandetr.cli.options import (
    BothSplits,
    DetectorSchedule,
    Device,
    NewModel,
    Out,
    PretrainingSchedule,
    Set,
    nested,
    numbers,
    read_settings,
    section,
    take_device,
    with_groups,
)


@app.command()
@with_groups
def train(
    model: Annotated[str, typer.Option(help="A name of `leandetr models`, or a saved detector to train further.")],
    out: Out,
    data: BothSplits,
    new: NewModel,
    schedule: DetectorSchedule,
    device: Device = "auto",
    set_: Set = None,
) -> None:
    """Train a detector and keep the best by AP. A saved one gets the classes of the data, and keeps what it knows of them.

    Example: `leandetr train --data DATA --model rt_detr_v2 --backbone resnet18 --image-size 256 256 --out runs/teacher`
    """
    take_device(device)
    from leandetr import verbs

    settings = read_settings(set_, ("model", "training"))
    verbs.train(data.source(), new.detector(model, settings), out, schedule.training(settings))
    out_console.print(str(out))


@app.command()
@with_groups
def distill(
    teacher: Annotated[
        str,
        typer.Option(
            help="Saved detector, hub id, self (its average), torchvision's NAME[:FILE], COCO results (JSON), dinov2:WEIGHTS."
        ),
    ],
    student: Annotated[str, typer.Option(help="A name of `leandetr models`, or a saved detector.")],
    out: Out,
    data: BothSplits,
    new: NewModel,
    schedule: DetectorSchedule,
    method: Annotated[str, typer.Option(help="Method, or several joined by commas.")] = "logits",
    weight: Annotated[list[str] | None, typer.Option(help="TERM=WEIGHT in place of the method's own; repeatable.")] = None,
    option: Annotated[list[str] | None, typer.Option(help="TERM.OPTION=VALUE of a term; repeatable.")] = None,
    cache_teacher: Annotated[
        Path | None,
        typer.Option(
            help="Folder that keeps the teacher's answers for every later epoch and run; needs --set training.views=N."
        ),
    ] = None,
    device: Device = "auto",
    set_: Set = None,
) -> None:
    """Train a student that also learns from a teacher.

    Example: `leandetr distill --data DATA --teacher runs/teacher --student rt_detr_v2 --backbone resnet18 --image-size 256 256
    --method logits --out runs/student`
    """
    take_device(device)
    from leandetr import verbs
    from leandetr.distillation.spec import Teaching

    settings = read_settings(set_, ("model", "training"))
    weights, options = numbers(read_settings(weight)), nested(read_settings(option))
    teaching = Teaching(teacher=teacher, method=method, weights=weights, options=options, cache=cache_teacher)
    verbs.distill(data.source(), teaching, new.detector(student, settings), out, schedule.training(settings))
    out_console.print(str(out))


@app.command()
@with_groups
def pretrain(
    backbone: Annotated[str, typer.Option(help="Any timm or transformers backbone, or a Swin of swin_detr.")],
    data: Annotated[Path, typer.Option("--data", help="Folder with train/CLASS/ and val/CLASS/, or detection data to crop.")],
    out: Out,
    schedule: PretrainingSchedule,
    image_size: Annotated[tuple[int, int], typer.Option(help="Height and width in pixels that images are squeezed to.")] = (
        224,
        224,
    ),
    weights: Annotated[str | None, typer.Option(help="To start from: a file, hub, or a package that carries some.")] = None,
    bits: Annotated[str | None, typer.Option(help="Train rounded to these, as of the scheme low-bit (4, 4-4-8).")] = None,
    device: Device = "auto",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="backbone_config.KEY=VALUE or training.KEY=VALUE; repeatable.")
    ] = None,
) -> None:
    """Train a backbone to classify images; a new detector takes the file as --weights.

    Example: `leandetr pretrain --backbone resnet18 --data groceries --image-size 64 64 --epochs 30 --out runs/resnet18`
    """
    take_device(device)
    from leandetr import verbs
    from leandetr.detectors.spec import NewBackbone

    settings = read_settings(set_, ("backbone_config", "training"))
    values = section(settings, "backbone_config")
    new = NewBackbone(name=backbone, image_size=image_size, weights=weights, set=values)
    top1 = verbs.pretrain(data, new, out, bits, schedule.training(settings))
    out_console.print(f"{out / 'backbone.safetensors'}  top-1 {top1:.3f}")
