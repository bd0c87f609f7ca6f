"""What a recipe is made of, as checked objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from leandetr.training.config import Seed, Training


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Shapes(Part):
    """The embedded synthetic set: numbers of images, (height, width), seed."""

    train: int = Field(1000, ge=1)
    val: int = Field(200, ge=1)
    size: tuple[int, int] = (128, 128)
    seed: Seed = 0


class Data(Part):
    """A folder in COCO's layout, or the embedded shapes."""

    folder: Path | None = None
    shapes: Shapes | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> Data:
        if (self.folder is None) == (self.shapes is None):
            raise ValueError("give either folder or shapes")
        return self


class Pretraining(Part):
    """Training of a backbone as a classifier, before its detector's. It starts from the model's `weights`, and what it learns
    takes their place.

    folder: with train/CLASS/ and val/CLASS/, or detection data, whose boxes are cut out. image_size: (height, width) that
    images are squeezed to. bits: of the scheme low-bit, to which layers are rounded meanwhile; float without.
    """

    folder: Path
    image_size: tuple[PositiveInt, PositiveInt]
    bits: str | None = None
    training: Training = Training()


NEW_MODEL = ("backbone", "weights", "set", "image_size")  # what a checkpoint has of its own


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
    pretraining: Pretraining | None = None
    training: Training = Training()

    @model_validator(mode="after")
    def _one_of_them(self) -> Model:
        if (self.checkpoint is None) == (self.model is None):
            raise ValueError("give either checkpoint or model")
        if self.pretraining is not None and (self.model is None or self.backbone is None):
            raise ValueError("pretraining is of a new detector's backbone: give model and backbone, or leave it out")
        given = [key for key in NEW_MODEL if getattr(self, key)]
        if self.checkpoint is not None and given:
            raise ValueError(f"a checkpoint has its own {' and '.join(given)}: leave out those of a new model")
        check_seed(self.training)
        return self


class Distillation(Part):
    """Method names joined by commas; by term name, weights in place of the methods' own, and options ({"logits": {"stages":
    "last"}}). cache: a folder for the teacher's answers, see `Training.views`."""

    method: str = "logits"
    weights: dict[str, float] = {}
    options: dict[str, dict[str, Any]] = {}
    cache: Path | None = None


def check_seed(training: Training) -> None:
    if "seed" in training.model_fields_set:
        raise ValueError("training.seed: every training has the recipe's seed, or those of a study's seeds; leave it out")


def check_views(student: Model, distillation: Distillation) -> None:
    if distillation.cache is not None and student.training.views is None and student.training.augment != "none":
        raise ValueError(
            "distillation.cache: the teacher's answers are of use where views come again; set student.training.views to how "
            "many each image has, or student.training.augment to none"
        )


class Quantization(Part):
    """A quantized row of a trained variant.

    name: of its row and folder, behind the variant's; the scheme's by default. options: the scheme's own settings.
    training: what differs from the student's schedule, for the scheme low-bit, which without one is calibrated alone.
    distillation: what it learns besides, from `teacher`, a checkpoint; by default from the recipe's teacher, or without one
    from the float detector that it is made from. stages: 2 quantizes the backbone first.
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
        if self.training is not None:
            check_seed(self.training)
        return self


class Benchmark(Part):
    """Runtimes to measure on, interleaved repeats, threads (all cores by default)."""

    runtimes: list[str] = Field(["pytorch", "onnxruntime"], min_length=1)
    repeats: int = Field(50, ge=5)
    threads: int | None = Field(None, ge=1)
