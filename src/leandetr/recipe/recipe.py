"""A recipe: a teacher, variants of a student, seeds, and what is measured of them.

The short form says `distillation` and `quantization` and has two variants: the student alone, `baseline`, and with its teacher,
`distilled`. The long form names its `variants`.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, model_validator

from leandetr.checked import Checked
from leandetr.detectors.spec import NEW_MODEL
from leandetr.distillation.spec import Distillation
from leandetr.recipe.parts import Benchmark, Common, Model, Quantization, check_views
from leandetr.training.config import Seed
from leandetr.trimming.goal import TrimGoal

QUANTIZATION = tuple(Quantization(scheme=scheme) for scheme in ("weight-only", "dynamic", "static"))
TEACHER = "teacher"  # the name of the teacher that all variants share, of its row and of its folder


class Variant(Checked):
    """A row of a study.

    name: of the row and, before `-seed-N`, of its folders. student, teacher: what differs from the recipe's own, merged into
    them key by key (but for `set` where another `model` is named); a variant without distillation is the student alone.
    trim: what the trained variant is then trimmed to keep to, a further row `NAME-trimmed`; what is quantized is that one.
    quantization: of the trained variant, each a further row `NAME-SCHEME`. against: the variant, or `teacher`, that its
    accuracy is held against, the first variant by default; its own name for a detector that is not to be compared.
    """

    later: ClassVar[frozenset[str]] = frozenset({"trim"})

    name: str = Field(pattern=r"^\w[\w.+-]*$")
    student: Model
    teacher: Model | None = None
    distillation: Distillation | None = None
    trim: TrimGoal | None = None
    quantization: list[Quantization] = Field(default_factory=list)
    against: str | None = None

    @model_validator(mode="after")
    def _can_be_trained(self) -> Variant:
        if self.distillation is not None:
            if not self.student.is_trained:
                raise ValueError(
                    "a finished checkpoint does not learn: give student.training to train it further, or student.model, or "
                    "leave out distillation"
                )
            if self.teacher is None:
                raise ValueError("distillation needs a teacher: give the recipe one")
            check_views(self.student, self.distillation)
        return self

    def trimmed(self) -> dict[str, TrimGoal]:
        """What it is trimmed to keep to, by the name of the row."""
        return {} if self.trim is None else {f"{self.name}-trimmed": self.trim}

    def quantized(self) -> dict[str, Quantization]:
        """Its quantizations by the names of their rows."""
        return {f"{self.name}-{q.name or q.scheme}": q for q in self.quantization}


class Recipe(Common):
    """Variants of a student, each trained with every seed, in one table.

    The short form has `seed` or `seeds`, `distillation` (`logits` by default), `trim` (none by default) and `quantization`
    (weight-only, dynamic and static by default); the long form has `variants` and `seeds`.

    Attributes:
        data: a `folder`, or the embedded `shapes`.
        image_size: (height, width), or the shorter side, of every model that is trained and names no other; without it each new
            model names its own, and checkpoints that are trained further keep theirs.
        calibration: training images for the static schemes.
        teacher: shared by all variants and seeds, trained once, with the first seed; needed where a variant distils. For
            methods that learn from detections alone, `checkpoint` may also be a JSON of detections or a detector of
            torchvision's.
        student: what the variants differ from.
        low_bit: what the schedule of low-bit quantizations differs in from the student's, before what each says itself.
        epochs: at which the report shows the AP besides the final one.
        benchmark: where to measure; the long form without it takes PyTorch's accuracy and exports nothing.
        gallery: validation images in the report.
    """

    later: ClassVar[frozenset[str]] = frozenset({"trim"})

    seed: Seed | None = None
    seeds: list[Seed] | None = Field(None, min_length=1)
    teacher: Model | None = None
    student: Model
    low_bit: dict[str, Any] = Field(default_factory=dict)
    distillation: Distillation | None = None
    trim: TrimGoal | None = None
    quantization: list[Quantization] | None = None
    variants: list[Variant] | None = Field(None, min_length=1)
    epochs: list[int] = Field(default_factory=list)
    benchmark: Benchmark | None = None

    @model_validator(mode="before")
    @classmethod
    def _merged(cls, values: Any) -> Any:
        """Complete the variants' students and teachers, so that they are checked, and written down, as what they are."""
        if not isinstance(values, dict):
            return values
        if isinstance(values.get("variants"), list):
            return values | {"variants": [_completed(variant, values) for variant in values["variants"]]}
        return _completed(values, values)

    @model_validator(mode="after")
    def _is_one_of_two_forms(self) -> Recipe:
        if self.variants is not None:
            given = [key for key in ("seed", "distillation", "trim", "quantization") if getattr(self, key) is not None]
            if given:
                right = "give seeds instead" if given[0] == "seed" else "give it to the variants"
                raise ValueError(f"{given[0]}: a recipe with variants has none of its own; {right}")
        elif self.teacher is None:
            raise ValueError("teacher: field required")
        elif not self.student.is_trained:
            raise ValueError(
                "student: give model, or training beside the checkpoint; a finished checkpoint has nothing left to compare "
                "with and without a teacher"
            )
        elif self.seed is not None and self.seeds is not None:
            raise ValueError("seed: give either seed or seeds")
        elif self.distillation is not None:
            check_views(self.student, self.distillation)
        return self

    @model_validator(mode="after")
    def _has_teachers_that_are_pruned_at_once(self) -> Recipe:
        for teacher in (self.teacher, *(variant.teacher for variant in self.variants or ())):
            if teacher is not None and teacher.prune is not None and teacher.prune.rounds > 1:
                raise ValueError("teacher.prune.rounds: students alone are pruned in rounds; leave it out")
        return self

    @model_validator(mode="after")
    def _can_be_told_apart(self) -> Recipe:
        compared, names = self.compared(), [TEACHER]
        for variant in compared:
            quantized = (f"{variant.name}-{q.name or q.scheme}" for q in variant.quantization)
            names += [variant.name, *variant.trimmed(), *quantized]
        for name in names:
            if names.count(name) > 1:
                key = "variants" if self.variants is not None else "quantization"
                raise ValueError(f"{key}: two rows are called {name}; give them names of their own")
        if len(set(self.all_seeds())) < len(self.all_seeds()):
            raise ValueError("seeds: a seed is there twice; name each once")
        for variant in self.variants or ():
            if variant.against not in (None, TEACHER, *(other.name for other in compared)):
                raise ValueError(f"variants: {variant.name} is held against {variant.against}, which is none; name a variant")
        for variant in compared:
            schedule = variant.student.training
            for epoch in self.epochs:
                if epoch > schedule.epochs or (epoch % schedule.evaluate_every and epoch != schedule.epochs):
                    raise ValueError(
                        f"epochs: {variant.name} is not evaluated after epoch {epoch}, but after every "
                        f"{schedule.evaluate_every} of {schedule.epochs}; set training.evaluate_every or name other epochs"
                    )
        return self

    def compared(self) -> list[Variant]:
        """The variants; of the short form the student alone and with its teacher."""
        if self.variants is not None:
            return self.variants
        quantization = list(QUANTIZATION) if self.quantization is None else self.quantization
        distilled: dict[str, Any] = {
            "teacher": self.teacher,
            "distillation": self.distillation or Distillation(),
            "trim": self.trim,
            "quantization": quantization,
        }
        return [
            Variant(name="baseline", student=self.student, against=TEACHER),
            Variant(name="distilled", student=self.student, **distilled),
        ]

    def measured_on(self) -> Benchmark | None:
        return self.benchmark or (Benchmark() if self.variants is None else None)

    def all_seeds(self) -> list[int]:
        return self.seeds or [self.seed or 0]

    def folder(self, row: str, seed: int) -> str:
        """The name of a row's folder; only a single seed's that is not of a list goes unnamed."""
        return row if self.variants is None and self.seeds is None else f"{row}-seed-{seed}"


def _completed(part: Any, recipe: dict[str, Any]) -> Any:
    """A variant, or a recipe in short form, whose student, teacher and schedules say all that the recipe says of them."""
    if not isinstance(part, dict):
        return part
    own = {}
    if part is not recipe:
        names = ("student", "teacher") if part.get("distillation") is not None else ("student",)
        own = {name: merge(recipe.get(name), part.get(name)) for name in names}
        own = {name: value for name, value in own.items() if value is not None}
    if isinstance(part.get("quantization"), list):
        student = own.get("student", part.get("student"))
        schedule = merge(student.get("training") if isinstance(student, dict) else None, recipe.get("low_bit"))
        own["quantization"] = [_scheduled(quantization, schedule) for quantization in part["quantization"]]
    return part | own


def _scheduled(quantization: Any, schedule: Any) -> Any:
    """A quantization that is trained, with the student's schedule under its own."""
    if not isinstance(quantization, dict) or quantization.get("training") is None:
        return quantization
    return quantization | {"training": merge(schedule, quantization["training"])}


def merge(base: Any, changes: Any) -> Any:
    """`changes` over `base`: mappings key by key, anything else as a whole; None leaves the base. A model's configuration
    values (`set`) begin anew where the changes name another `model`. Where they name a `checkpoint`, nothing is left of what a
    new one is built from, and the schedule only where they give a `training` too: without one it is taken as it is.

    >>> merge({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}, "d": [4]})
    {'a': {'b': 1, 'c': 3}, 'd': [4]}
    """
    if changes is None:
        return base
    if not (isinstance(base, dict) and isinstance(changes, dict)):
        return changes
    if changes.get("model", base.get("model")) != base.get("model"):
        base = {key: value for key, value in base.items() if key != "set"}
    if changes.get("checkpoint") is not None:
        gone = {*NEW_MODEL, "pretraining", "prune", *(() if "training" in changes else ("training",))}
        base = {key: value for key, value in base.items() if key not in gone}
    return base | {key: merge(base.get(key), value) if value is not None else None for key, value in changes.items()}
