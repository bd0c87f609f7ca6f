"""A recipe: everything a `compress` run does, read from YAML. Unknown keys are refused with the nearest known one.

A `Recipe` takes one student to int8 and measures what each step cost. A `Study` (a file with `variants`) trains many variants
of a student with several seeds and compares their accuracy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

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
    "last"}}). cache: a folder for the teacher's answers, see `Training.views`."""

    method: str = "logits"
    weights: dict[str, float] = {}
    options: dict[str, dict[str, Any]] = {}
    cache: Path | None = None


def _check_views(student: Model, distillation: Distillation) -> None:
    if distillation.cache is not None and student.training.views is None and student.training.augment != "none":
        raise ValueError(
            "distillation.cache: the teacher's answers are of use where views come again; set student.training.views to how "
            "many each image has, or student.training.augment to none"
        )


class Quantization(Part):
    """One quantized variant of the distilled student.

    name: of its row and folder, behind `distilled-`; the scheme's by default. options: the scheme's own settings.
    training: the schedule of the scheme low-bit, which without one is calibrated alone. distillation: what it learns besides,
    from `teacher`, a checkpoint; by default from the study's teacher, or without one from the float detector that it is made
    from. stages: 2 quantizes the backbone first. In a study, `training` says what differs from the student's schedule.
    """

    scheme: str
    name: str | None = None
    options: dict[str, Any] = {}
    training: Training | None = None
    distillation: Distillation | None = None
    teacher: str | None = None
    stages: Literal[1, 2] = 1

    @model_validator(mode="after")
    def _is_trained(self) -> Quantization:
        if self.training is None and (self.distillation is not None or self.stages == 2):
            raise ValueError("distillation and stages are those of a training: give training too")
        if self.distillation is not None and self.distillation.cache is not None:
            raise ValueError("distillation.cache: low-bit training keeps no answers; leave it out")
        return self


class Benchmark(Part):
    """Runtimes to measure on, interleaved repeats, threads (all cores by default)."""

    runtimes: list[str] = Field(["pytorch", "onnxruntime"], min_length=1)
    repeats: int = Field(50, ge=5)
    threads: int | None = Field(None, ge=1)


class Job(Part):
    """What recipes and studies share.

    image_size: (height, width) of every model that names no other. calibration: training images for the static schemes.
    """

    data: Data
    image_size: tuple[int, int]
    calibration: int = Field(64, ge=1)


class Recipe(Job):
    """One student, without and with its teacher, quantized, exported and measured.

    gallery: validation images in the report.
    """

    seed: int = 0
    teacher: Model
    student: Model
    distillation: Distillation = Distillation()
    quantization: list[Quantization] = [
        Quantization(scheme="weight-only"),
        Quantization(scheme="dynamic"),
        Quantization(scheme="static"),
    ]
    benchmark: Benchmark = Benchmark()
    gallery: int = Field(12, ge=0)

    @model_validator(mode="after")
    def _student_is_built(self) -> Recipe:
        if self.student.model is None:
            raise ValueError(
                "student: give model; a finished checkpoint has nothing left to compare with and without a teacher"
            )
        _check_views(self.student, self.distillation)
        return self


class Variant(Part):
    """A row of a study.

    name: of the row and, before `-seed-N`, of its folders. student, teacher: what differs from the study's own, merged into
    them key by key (but for `set` where another `model` is named); a variant without distillation is the student alone.
    quantization: of the trained variant, each a further row `NAME-SCHEME`. against: the variant that its accuracy is held
    against, the study's first by default.
    """

    name: str = Field(pattern=r"^\w[\w.+-]*$")
    student: Model
    teacher: Model | None = None
    distillation: Distillation | None = None
    quantization: list[Quantization] = []
    against: str | None = None

    @model_validator(mode="after")
    def _can_be_trained(self) -> Variant:
        if self.distillation is not None and self.student.model is None:
            raise ValueError("a finished checkpoint does not learn: give student.model, or leave out distillation")
        if self.distillation is not None and self.teacher is None:
            raise ValueError("distillation needs a teacher: give the study one")
        if self.distillation is not None:
            _check_views(self.student, self.distillation)
        return self

    def quantized(self) -> dict[str, Quantization]:
        """Its quantizations by the names of their rows."""
        return {f"{self.name}-{q.name or q.scheme}": q for q in self.quantization}


class Study(Job):
    """Variants of a student, each trained with every seed.

    teacher: shared by all variants and seeds, trained once, with the first seed; needed where a variant distils. For methods
    that learn from detections alone, `checkpoint` may also be a JSON of detections or a detector of torchvision's.
    student: what the variants differ from. epochs: at which the report shows the AP besides the final one. benchmark: where to
    measure; without it accuracy is PyTorch's and nothing is exported.
    """

    seeds: list[int] = Field([0], min_length=1)
    teacher: Model | None = None
    student: Model
    variants: list[Variant] = Field(min_length=1)
    epochs: list[int] = []
    benchmark: Benchmark | None = None

    @model_validator(mode="before")
    @classmethod
    def _merged(cls, values: Any) -> Any:
        """Complete the variants' students and teachers, so that they are checked, and written down, as what they are."""
        if not isinstance(values, dict) or not isinstance(values.get("variants"), list):
            return values

        def completed(variant: Any) -> Any:
            if not isinstance(variant, dict):
                return variant
            parts = ("student", "teacher") if variant.get("distillation") is not None else ("student",)
            own = {part: _changed(values.get(part), variant.get(part)) for part in parts}
            own = {part: value for part, value in own.items() if value is not None}
            if isinstance(variant.get("quantization"), list):
                schedule = own["student"].get("training") if isinstance(own.get("student"), dict) else None
                own["quantization"] = [_scheduled(quantization, schedule) for quantization in variant["quantization"]]
            return variant | own

        return values | {"variants": [completed(variant) for variant in values["variants"]]}

    @model_validator(mode="after")
    def _can_be_told_apart(self) -> Study:
        names = ["teacher", *(variant.name for variant in self.variants)]
        names += [f"{variant.name}-{q.name or q.scheme}" for variant in self.variants for q in variant.quantization]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"variants: two rows are called {name}; give them names of their own")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: a seed is there twice; name each once")
        for variant in self.variants:
            if variant.against is not None and variant.against not in [other.name for other in self.variants]:
                raise ValueError(f"variants: {variant.name} is held against {variant.against}, which is none; name a variant")
            schedule = variant.student.training
            for epoch in self.epochs:
                if epoch > schedule.epochs or (epoch % schedule.evaluate_every and epoch != schedule.epochs):
                    raise ValueError(
                        f"epochs: {variant.name} is not evaluated after epoch {epoch}, but after every "
                        f"{schedule.evaluate_every} of {schedule.epochs}; set training.evaluate_every or name other epochs"
                    )
        return self


def _changed(model: Any, changes: Any) -> Any:
    """A model with a variant's changes; where they name another one, its configuration values begin anew."""
    if isinstance(model, dict) and isinstance(changes, dict) and changes.get("model", model.get("model")) != model.get("model"):
        model = {key: value for key, value in model.items() if key != "set"}
    return merge(model, changes)


def _scheduled(quantization: Any, schedule: Any) -> Any:
    """A quantization that is trained, with the student's schedule under its own."""
    if not isinstance(quantization, dict) or quantization.get("training") is None:
        return quantization
    return quantization | {"training": merge(schedule, quantization["training"])}


def merge(base: Any, changes: Any) -> Any:
    """`changes` over `base`: mappings key by key, anything else as a whole; None leaves the base.

    >>> merge({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}, "d": [4]})
    {'a': {'b': 1, 'c': 3}, 'd': [4]}
    """
    if changes is None:
        return base
    if not (isinstance(base, dict) and isinstance(changes, dict)):
        return changes
    return base | {key: merge(base.get(key), value) if value is not None else None for key, value in changes.items()}


def read_recipe(path: Path, changes: dict[str, Any] | None = None) -> Recipe | Study:
    """Read a YAML file; `changes` sets values by dotted name ("student.training.epochs": 3). Relative folders in it are
    relative to the current directory.

    `extends: other.yaml` (or a list of files, each over those before it) takes what those files say, beside the file that names
    them, and puts the file's own keys over it: mappings are merged, anything else is replaced.

    Raises:
        UserError: a file cannot be read, is no YAML mapping, or has a key or value that is not understood (names it).
    """
    values = _read(Path(path), ())
    for name, value in (changes or {}).items():
        _set(values, name.split("."), value, name)
    return parse_recipe(values, str(path))


def _read(path: Path, readers: tuple[Path, ...]) -> dict[str, Any]:
    """A file over those it extends; `readers` are the files that extend it."""
    if path.resolve() in readers:
        raise UserError(f"{path} extends itself; take it out of its own extends")
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the recipe {path}: {error.strerror}; give the path of a YAML file") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML ({str(error).splitlines()[0]}); mend it") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} is no recipe: it must be a mapping with data, teacher and student")
    extended = values.pop("extends", [])
    found: dict[str, Any] = {}
    for base in [extended] if isinstance(extended, str) else extended:
        found = merge(found, _read(path.parent / base, (*readers, path.resolve())))
    return merge(found, values)


def parse_recipe(values: dict[str, Any], source: str) -> Recipe | Study:
    kind = Study if {"variants", "seeds"} & values.keys() else Recipe
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise _sentence(error, source, kind) from error


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


def _sentence(error: ValidationError, source: str, model: type[BaseModel]) -> UserError:
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
