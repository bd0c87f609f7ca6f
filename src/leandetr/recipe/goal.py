"""A recipe that says what is wanted and not how: data, a teacher and a goal. `runs/search.py` finds the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Self, TypeVar

from pydantic import Field, field_validator, model_validator

from leandetr.checked import Checked
from leandetr.distillation.spec import Distillation
from leandetr.recipe.parts import Common, Model, check_seed
from leandetr.training.config import Seed, Training
from leandetr.trimming.goal import DROP

ENGINES = ("onnxruntime", "openvino")  # those that run quantized files


class Tried(Protocol):
    """ap: on the photographs that choose. latency_ms: of one photograph on the goal's engine."""

    @property
    def ap(self) -> float: ...
    @property
    def latency_ms(self) -> float: ...


TriedT = TypeVar("TriedT", bound=Tried)


class Goal(Checked):
    """What the file that is looked for must keep to: a loss, a time, or both.

    Attributes:
        max_ap_drop: below the teacher's AP, a fraction. Alone it asks for the fastest file that loses no more.
        latency_ms: of one photograph on the engine, with its post-processing. Alone it asks for the most accurate file that
            takes no longer.
        engine: "onnxruntime" or "openvino".
        trainings: at most so many; each takes the recipe's whole schedule. 0 looks for what needs none.
    """

    max_ap_drop: float | None = Field(None, ge=0, lt=1)
    latency_ms: float | None = Field(None, gt=0)
    engine: str = "onnxruntime"
    trainings: int = Field(4, ge=0)

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if self.max_ap_drop is None and self.latency_ms is None:
            raise ValueError("give max_ap_drop, latency_ms or both")
        if self.engine not in ENGINES:
            raise ValueError(f"engine: {self.engine!r} is none of {', '.join(ENGINES)}; name one of these")
        return self

    @property
    def drop(self) -> float:
        """What may be lost; where time alone is the goal, what is as good as nothing."""
        return DROP if self.max_ap_drop is None else self.max_ap_drop

    def in_time(self, one: Tried) -> bool:
        return self.latency_ms is None or one.latency_ms <= self.latency_ms

    def keeps(self, one: Tried, teacher: Tried) -> bool:
        """Whether it loses no more than may be lost."""
        return one.ap >= teacher.ap - self.drop

    def choose(self, tried: Sequence[TriedT], teacher: Tried) -> tuple[TriedT, bool]:
        """What the goal asks for, and whether that meets it. Where nothing does: the fastest of all where time alone is the
        goal, else the fastest that keeps the accuracy. tried: with the teacher among them."""
        in_time = [one for one in tried if self.in_time(one)]
        if self.max_ap_drop is None:
            if in_time:
                return max(in_time, key=lambda one: (one.ap, -one.latency_ms)), True
            return min(tried, key=lambda one: one.latency_ms), False
        kept = [one for one in tried if self.keeps(one, teacher)]
        met = [one for one in kept if self.in_time(one)]
        return min(met or kept, key=lambda one: (one.latency_ms, -one.ap)), bool(met)


class GoalRecipe(Common):
    """A teacher that is made as small and fast as a goal asks, by whatever does it.

    Attributes:
        teacher: a checkpoint as it is, or with `training` one that is trained further, or a new model.
        goal: what the file must keep to.
        training: the schedule after which a cut detector is judged.
        distillation: how cut detectors learn from the teacher; by default DETRDistill where queries are learned, FitNet where
            the encoder chooses them.
        seed: of every training.
    """

    teacher: Model
    goal: Goal
    training: Training = Training(epochs=12)
    distillation: Distillation | None = None
    seed: Seed = 0

    @field_validator("training")
    @classmethod
    def _unseeded(cls, training: Training) -> Training:
        check_seed(training)
        return training

    @field_validator("distillation")
    @classmethod
    def _uncached(cls, distillation: Distillation | None) -> Distillation | None:
        if distillation is not None and distillation.cache is not None:
            raise ValueError("cache: a search trains detectors for images of several sizes; leave it out")
        return distillation

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.teacher.prune is not None:
            raise ValueError("teacher.prune: the search finds out what to prune; leave it out")
        return self
