"""How much is pruned, of what, and by what units are ranked."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from leandetr.checked import Checked
from leandetr.deployment.runtimes import ENGINES
from leandetr.detectors.units import STRUCTURES, Structure


class Pruning(Checked):
    """What of a detector is left out: one of the three goals, and where and how units are chosen.

    Attributes:
        ratio: of the multiply-adds of the whole detector that leave, between 0 and 1, both excluded.
        target_macs: multiply-adds of one image that the whole detector is to have at most.
        target_latency_ms: milliseconds of one photograph on the engine, with its post-processing.
        engine: a name in `ENGINES`.
        structures: "ffn", hidden units of the feed-forward layers of encoder and decoder; "heads" of their attention;
            "channels" inside the blocks of the backbone and of a convolutional encoder, with the hidden units of the
            backbone's own feed-forward layers.
        importance: "taylor", what the loss would change to first order without a unit, or "magnitude" of its weights.
        calibration_images: photographs of the training split that the loss is computed on, evenly spread; all where there are
            fewer.
    """

    ratio: float | None = Field(None, gt=0, lt=1)
    target_macs: float | None = Field(None, gt=0)
    target_latency_ms: float | None = Field(None, gt=0)
    engine: str = "onnxruntime"
    structures: tuple[Structure, ...] = Field(STRUCTURES, min_length=1)
    importance: Literal["taylor", "magnitude"] = "taylor"
    calibration_images: int = Field(128, ge=1)

    @model_validator(mode="after")
    def _has_one_goal(self) -> Self:
        if len(self.goal) != 1:
            raise ValueError("give one goal: ratio, target_macs or target_latency_ms")
        if self.engine not in ENGINES:
            raise ValueError(f"engine: {self.engine!r} is none of {', '.join(ENGINES)}; name one of these")
        return self

    @property
    def goal(self) -> dict[str, float]:
        """The goal by its name."""
        goals = {name: getattr(self, name) for name in ("ratio", "target_macs", "target_latency_ms")}
        return {name: value for name, value in goals.items() if value is not None}
