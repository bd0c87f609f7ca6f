"""What a run has found so far: the rows of `results.json`, and what is left to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from leandetr.recipe.rows import Plan
from leandetr.report import Row, combine
from leandetr.runs.ledger import Made

#: Of a measurement, what the row has in words of its own.
KNOWN = ("runtime", "reference")


class ResultTable:
    """The rows of a run by engine and name, as far as they go.

    Attributes:
        found: (row, engine) -> seed -> COCO's metrics, costs and curve.
        first: (row, engine) -> the first seed's artefact, which is the one that is measured.
        measurements: of all pairs in order, once they are taken.
    """

    def __init__(self, plans: Mapping[str, Plan], engines: Sequence[str]) -> None:
        self.plans = plans
        self.pairs = [(row, engine) for engine in engines for row in plans]
        self.found: dict[tuple[str, str], dict[int, dict[str, Any]]] = {pair: {} for pair in self.pairs}
        self.first: dict[tuple[str, str], Made] = {}
        self.measurements: Sequence[Mapping[str, Any]] = ()

    def rows(self) -> list[Row]:
        rows = [self._row(*pair) for pair in self.pairs]
        for row, measured in zip(rows, self.measurements):
            own = {field: value for field, value in measured.items() if field not in KNOWN}
            row |= own  # type: ignore[typeddict-item]  # they are the fields of a row that it has once it is measured
        return rows

    def missing(self) -> list[str]:
        """What has no result yet, in the order in which it will be done."""
        seeds = max((plan.seeds for plan in self.plans.values()), key=len)
        return [
            row if plan.seeds != seeds else f"{row} with seed {seed}"
            for seed in seeds
            for row, plan in self.plans.items()
            if seed in plan.seeds and self.lacks(row, seed)
        ]

    def lacks(self, row: str, seed: int) -> bool:
        """Whether an engine has no result of a row's seed yet."""
        return any(seed not in found for (name, _), found in self.found.items() if name == row)

    def float_rows(self) -> list[int]:
        """For every pair the place of the one that its speed-up is against."""
        return [self.pairs.index((self.plans[row].float_row, engine)) for row, engine in self.pairs]

    def _row(self, name: str, engine: str) -> Row:
        plan, held = self.plans[name], None
        if plan.against is not None:
            others = self.found[plan.against, engine]
            if len(self.plans[plan.against].seeds) == 1 and others:  # a teacher is the same for all seeds
                others = dict.fromkeys(plan.seeds, next(iter(others.values())))
            held = (plan.against, others)
        return combine(name, engine, self.found[name, engine], plan.seeds, plan.float_row, held)
