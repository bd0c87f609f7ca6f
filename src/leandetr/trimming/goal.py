"""What trimming is to keep to, and which point of the frontier that chooses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from pydantic import Field, model_validator

from leandetr.checked import Checked
from leandetr.deployment.runtimes import ENGINES
from leandetr.errors import UserError
from leandetr.structures import size_in_words

DROP = 0.005  # of AP, where no goal is named


@dataclass(frozen=True)
class Point:
    """A detector with so much of each. size: (height, width) in pixels, or the shorter side. ap: on the held-out photographs.
    latency_ms: of one photograph on the engine, measured or, where `measured` is False, estimated."""

    layers: int
    queries: int
    size: tuple[int, int] | int
    ap: float = 0.0
    latency_ms: float = 0.0
    measured: bool = False

    @property
    def key(self) -> tuple[int, int, tuple[int, int] | int]:
        return self.layers, self.queries, self.size

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self) | {"size": self.size if isinstance(self.size, int) else list(self.size)}

    def judged(self, ap: float) -> Point:
        return replace(self, ap=ap)

    def timed(self, latency_ms: float, measured: bool) -> Point:
        return replace(self, latency_ms=latency_ms, measured=measured)


class TrimGoal(Checked):
    """Either the fastest detector that loses no more than so much AP, or the most accurate one that takes no more time.

    Attributes:
        max_ap_drop: in AP on the held-out photographs, a fraction; 0.005 where neither is given.
        target_latency_ms: of one photograph on the engine, with its post-processing.
        engine: a name in `ENGINES`.
        held_out: photographs that AP is measured on, evenly spread; all where there are fewer.
    """

    max_ap_drop: float | None = Field(None, ge=0, lt=1)
    target_latency_ms: float | None = Field(None, gt=0)
    engine: str = "onnxruntime"
    held_out: int = Field(256, ge=1)

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if self.engine not in ENGINES:
            raise ValueError(f"engine: {self.engine!r} is none of {', '.join(ENGINES)}; name one of these")
        if self.max_ap_drop is not None and self.target_latency_ms is not None:
            raise ValueError("max_ap_drop and target_latency_ms are two goals; give one of them")
        return self

    @property
    def drop(self) -> float:
        """What may be lost where no latency is the goal."""
        return DROP if self.max_ap_drop is None else self.max_ap_drop

    def choose(self, points: Sequence[Point], full: Point) -> Point:
        """Of equally good ones that with fewer layers, then fewer queries.

        Raises UserError where no point is as fast as the target.
        """
        target = self.target_latency_ms
        if target is None:
            within = [point for point in points if point.ap >= full.ap - self.drop]
            return min(within, key=lambda point: (point.latency_ms, point.layers, point.queries))
        within = [point for point in points if point.latency_ms <= target]
        if not within:
            fastest = min(points, key=lambda point: point.latency_ms)
            raise UserError(
                f"the target of {target:g} ms cannot be met by trimming: the fastest of {len(points)} detectors, with "
                f"{fastest.layers} layers, {fastest.queries} queries and images of {size_in_words(fastest.size)}, takes "
                f"{fastest.latency_ms:.2f} ms on {self.engine}; allow more time, or quantize too"
            )
        return min(within, key=lambda point: (-point.ap, point.layers, point.queries))


def frontier(points: Sequence[Point]) -> list[Point]:
    """Those that no other is both as fast as and as accurate as, by falling latency."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda point: (point.latency_ms, -point.ap, point.layers, point.queries)):
        if not kept or point.ap > kept[-1].ap:
            kept.append(point)
    return kept[::-1]
