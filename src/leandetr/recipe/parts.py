"""What a recipe is made of, as checked objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveInt, model_validator

from leandetr.checked import Checked
from leandetr.detectors.spec import ImageSize, NewDetector
from leandetr.distillation.spec import Distillation
from leandetr.pruning.config import Pruning
from leandetr.training.config import Seed, Training


class Shapes(Checked):
    """The embedded synthetic set: numbers of images, (height, width), seed."""

    train: int = Field(1000, ge=1)
    val: int = Field(200, ge=1)
    size: tuple[int, int] = (128, 128)
    seed: Seed = 0


class Data(Checked):
    """A folder with boxes in any layout, or the embedded shapes.

    val_fraction, val_group, val_seed: how validation images are drawn from a folder that has none, see `Partition`; seed 0 by
    default.
    """

    later: ClassVar[frozenset[str]] = frozenset({"val_fraction", "val_group", "val_seed"})
    folder: Path | None = None
    shapes: Shapes | None = None
    val_fraction: float | None = Field(None, gt=0, lt=1)
    val_group: str | None = None
    val_seed: Seed | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> Data:
        if (self.folder is None) == (self.shapes is None):
            raise ValueError("give either folder or shapes")
        drawn = [key for key in sorted(self.later) if getattr(self, key) is not None]
        if drawn and (self.val_fraction is None or self.folder is None):
            missing = "val_fraction" if self.folder is not None else "folder"
            raise ValueError(f"{drawn[0]}: it is of a draw of validation images; give {missing} too, or leave it out")
        return self


class Pretraining(Checked):
    """Training of a backbone as a classifier, before its detector's. It starts from the model's `weights`, and what it learns
    takes their place.

    folder: with train/CLASS/ and val/CLASS/, or detection data, whose boxes are cut out. image_size: (height, width) that
    images are squeezed to. bits: of the scheme low-bit, to which layers are rounded meanwhile; float without.
    """

    folder: Path
    image_size: tuple[PositiveInt, PositiveInt]
    bits: str | None = None
    training: Training = Training()


class StudentPruning(Pruning):
    """rounds: prunings on the way to a ratio, each followed by its share of the training."""

    rounds: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _goes_to_a_ratio(self) -> StudentPruning:
        if self.rounds > 1 and self.ratio is None:
            raise ValueError("rounds are steps towards a ratio: give ratio, or leave rounds out")
        return self


class Model(NewDetector):
    """A new detector and how it is trained; a checkpoint as it is; or, with `training`, a checkpoint that is trained further,
    on the recipe's data and for its classes.

    prune: what of such a checkpoint is left out before its training, once for all variants and seeds that say the same; or in
    rounds, between which it is trained.
    """

    later: ClassVar[frozenset[str]] = NewDetector.later | {"prune"}

    prune: StudentPruning | None = None
    pretraining: Pretraining | None = None
    training: Training = Training()

    @model_validator(mode="after")
    def _can_be_trained(self) -> Model:
        if self.pretraining is not None and (self.model is None or self.backbone is None):
            raise ValueError("pretraining is of a new detector's backbone: give model and backbone, or leave it out")
        if self.prune is not None and not (self.checkpoint is not None and self.is_trained):
            raise ValueError("prune is of a trained detector that is trained further: give checkpoint and training too")
        if self.prune is not None and self.prune.rounds > 1:
            if self.training.keep_epochs:
                raise ValueError("training.keep_epochs: every round of pruning counts its own epochs; leave it or rounds out")
            if (length := self.training.max_steps or self.training.epochs) < self.prune.rounds:
                raise ValueError(f"prune.rounds: {self.prune.rounds} trainings cannot share {length} epochs; ask for fewer")
        check_seed(self.training)
        return self

    @property
    def is_trained(self) -> bool:
        return self.checkpoint is None or "training" in self.model_fields_set


def check_seed(training: Training) -> None:
    """Raises ValueError where a schedule has a seed of its own."""
    if "seed" in training.model_fields_set:
        raise ValueError("training.seed: every training has the recipe's seed, or those of a study's seeds; leave it out")


def check_views(student: Model, distillation: Distillation) -> None:
    """Raises ValueError where a teacher's answers are kept and no view of a photograph comes again."""
    if distillation.cache is not None and student.training.views is None and student.training.augment != "none":
        raise ValueError(
            "distillation.cache: the teacher's answers are of use where views come again; set student.training.views to how "
            "many each image has, or student.training.augment to none"
        )


class Quantization(Checked):
    """A quantized row of a trained variant.

    name: of its row and folder, behind the variant's; the scheme's by default. options: the scheme's own settings.
    training: what differs from the student's schedule, for the scheme low-bit, which without one is calibrated alone.
    distillation: what it learns besides, from `teacher`, a checkpoint; by default from the recipe's teacher, or without one
    from the float detector that it is made from. stages: 2 quantizes the backbone first.
    """

    scheme: str
    name: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
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


class Common(Checked):
    """What every kind of recipe has: data, calibration images, the size of images, validation images in the report."""

    data: Data
    image_size: ImageSize | None = None
    calibration: int = Field(64, ge=1)
    gallery: int = Field(12, ge=0)


class Benchmark(Checked):
    """Runtimes to measure on, interleaved repeats, threads (all cores by default)."""

    runtimes: list[str] = Field(["pytorch", "onnxruntime"], min_length=1)
    repeats: int = Field(50, ge=5)
    threads: int | None = Field(None, ge=1)
