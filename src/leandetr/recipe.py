"""A recipe: everything a `compress` run does, read from YAML. Unknown keys are refused with the nearest known one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from leandetr.errors import UserError, unknown
from leandetr.training.config import Training


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Shapes(Part):
    """The embedded synthetic set: numbers of images, (height, width), seed."""

    train: int = Field(1000, ge=1)
    val: int = Field(200, ge=1)
    size: tuple[int, int] = (128, 128)
    seed: int = 0


class Data(Part):
    """A folder in COCO's layout, or the embedded shapes."""

    folder: Path | None = None
    shapes: Shapes | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> Data:
        if (self.folder is None) == (self.shapes is None):
            raise ValueError("give either folder or shapes")
        return self


class Model(Part):
    """A detector: a checkpoint folder or hub id as it is, or a short name with what it is built from and how it is trained.

    set: configuration values by name (`decoder_layers: 3`), dots reach into `backbone_config`.
    """

    checkpoint: str | None = None
    model: str | None = None
    backbone: str | None = None
    weights: str | None = None
    set: dict[str, Any] = {}
    image_size: tuple[int, int] | None = None
    training: Training = Training()

    @model_validator(mode="after")
    def _one_of_them(self) -> Model:
        if (self.checkpoint is None) == (self.model is None):
            raise ValueError("give either checkpoint or model")
        return self


class Distillation(Part):
    """Method names joined by commas; by term name, weights in place of the methods' own, and options ({"logits": {"stages":
    "last"}})."""

    method: str = "logits"
    weights: dict[str, float] = {}
    options: dict[str, dict[str, Any]] = {}


class Quantization(Part):
    """One quantized variant of the distilled student.

    name: of its row and folder, behind `distilled-`; the scheme's by default. options: the scheme's own settings.
    """

    scheme: str
    name: str | None = None
    options: dict[str, Any] = {}


class Benchmark(Part):
    """Runtimes to measure on, interleaved repeats, threads (all cores by default)."""

    runtimes: list[str] = Field(["pytorch", "onnxruntime"], min_length=1)
    repeats: int = Field(50, ge=5)
    threads: int | None = Field(None, ge=1)


class Recipe(Part):
    """What `leandetr compress` does.

    image_size: (height, width) of every model that names no other. calibration: training images for the static schemes.
    gallery: validation images in the report.
    """

    data: Data
    image_size: tuple[int, int]
    seed: int = 0
    teacher: Model
    student: Model
    distillation: Distillation = Distillation()
    quantization: list[Quantization] = [
        Quantization(scheme="weight-only"),
        Quantization(scheme="dynamic"),
        Quantization(scheme="static"),
    ]
    calibration: int = Field(64, ge=1)
    benchmark: Benchmark = Benchmark()
    gallery: int = Field(12, ge=0)

    @model_validator(mode="after")
    def _student_is_built(self) -> Recipe:
        if self.student.model is None:
            raise ValueError(
                "student: give model; a finished checkpoint has nothing left to compare with and without a teacher"
            )
        return self


def read_recipe(path: Path, changes: dict[str, Any] | None = None) -> Recipe:
    """Read a YAML file; `changes` sets values by dotted name ("student.training.epochs": 3). Relative folders in it are
    relative to the current directory.

    Raises:
        UserError: the file cannot be read, is no YAML mapping, or has a key or value that is not understood (names it).
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the recipe {path}: {error.strerror}; give the path of a YAML file") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML ({str(error).splitlines()[0]}); mend it") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} is no recipe: it must be a mapping with data, teacher and student")
    for name, value in (changes or {}).items():
        _set(values, name.split("."), value, name)
    return parse_recipe(values, str(path))


def parse_recipe(values: dict[str, Any], source: str) -> Recipe:
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise _sentence(error, source) from error


def parse_training(values: dict[str, Any], source: str) -> Training:
    """Raises UserError for a key or value of the schedule that is not understood."""
    try:
        return Training.model_validate(values)
    except ValidationError as error:
        raise _sentence(error, source, Training) from error


def _set(values: dict[str, Any], path: list[str], value: Any, name: str) -> None:
    for key in path[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise UserError(f"--set {name}: {key} is a value, not a section; name one of the recipe's keys")
    values[path[-1]] = value


def _sentence(error: ValidationError, source: str, model: type[BaseModel] = Recipe) -> UserError:
    """The first fault of a validation, with the nearest known key where a key is unknown."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = _fields(model, first["loc"][:-1])
        return UserError(f"{source}: {unknown('key', place, [*known])}")
    message = first["msg"].removeprefix("Value error, ")
    return UserError(f"{source}: {place or 'recipe'}: {message[0].lower() + message[1:]}; mend that key")


def _fields(model: type[BaseModel], path: tuple) -> list[str]:
    """Dotted names of the keys beside the unknown one."""
    prefix = ""
    for part in path:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        model = next(kind for kind in [annotation, *getattr(annotation, "__args__", ())] if hasattr(kind, "model_fields"))
        prefix += f"{part}."
    return [prefix + name for name in model.model_fields]
