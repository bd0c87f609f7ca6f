"""The recipe of a study: variants of a student, several seeds."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from leandetr.recipe.parts import NEW_MODEL, Benchmark, Distillation, Job, Model, Part, Quantization, check_views
from leandetr.training.config import Seed


class Variant(Part):
    """A row of a study.

    name: of the row and, before `-seed-N`, of its folders. student, teacher: what differs from the study's own, merged into
    them key by key (but for `set` where another `model` is named); a variant without distillation is the student alone.
    quantization: of the trained variant, each a further row `NAME-SCHEME`. against: the variant that its accuracy is held
    against, the study's first by default; its own name for a detector that is not to be compared.
    """

    name: str = Field(pattern=r"^\w[\w.+-]*$")
    student: Model
    teacher: Model | None = None
    distillation: Distillation | None = None
    quantization: list[Quantization] = Field(default_factory=list)
    against: str | None = None

    @model_validator(mode="after")
    def _can_be_trained(self) -> Variant:
        if self.distillation is not None and self.student.model is None:
            raise ValueError("a finished checkpoint does not learn: give student.model, or leave out distillation")
        if self.distillation is not None and self.teacher is None:
            raise ValueError("distillation needs a teacher: give the study one")
        if self.distillation is not None:
            check_views(self.student, self.distillation)
        return self

    def quantized(self) -> dict[str, Quantization]:
        """Its quantizations by the names of their rows."""
        return {f"{self.name}-{q.name or q.scheme}": q for q in self.quantization}


class Study(Job):
    """Variants of a student, each trained with every seed.

    teacher: shared by all variants and seeds, trained once, with the first seed; needed where a variant distils. For methods
    that learn from detections alone, `checkpoint` may also be a JSON of detections or a detector of torchvision's.
    student: what the variants differ from. low_bit: what the schedule of low-bit quantizations differs in from the student's,
    before what each says itself. epochs: at which the report shows the AP besides the final one. benchmark: where to
    measure; without it accuracy is PyTorch's and nothing is exported.
    """

    seeds: list[Seed] = Field([0], min_length=1)
    teacher: Model | None = None
    student: Model
    low_bit: dict[str, Any] = Field(default_factory=dict)
    variants: list[Variant] = Field(min_length=1)
    epochs: list[int] = Field(default_factory=list)
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
            own = {part: merge(values.get(part), variant.get(part)) for part in parts}
            own = {part: value for part, value in own.items() if value is not None}
            if isinstance(variant.get("quantization"), list):
                schedule = own["student"].get("training") if isinstance(own.get("student"), dict) else None
                schedule = merge(schedule, values.get("low_bit"))
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


def _scheduled(quantization: Any, schedule: Any) -> Any:
    """A quantization that is trained, with the student's schedule under its own."""
    if not isinstance(quantization, dict) or quantization.get("training") is None:
        return quantization
    return quantization | {"training": merge(schedule, quantization["training"])}


def merge(base: Any, changes: Any) -> Any:
    """`changes` over `base`: mappings key by key, anything else as a whole; None leaves the base. A model's configuration
    values (`set`) begin anew where the changes name another `model`, and of what a new one is built from nothing is left where
    they name a `checkpoint`.

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
        base = {key: value for key, value in base.items() if key not in (*NEW_MODEL, "pretraining")}
    return base | {key: merge(base.get(key), value) if value is not None else None for key, value in changes.items()}
