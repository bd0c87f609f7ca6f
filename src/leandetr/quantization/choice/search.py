"""Mixed precision under an accuracy budget: for every layer one of several candidates, the whole as cheap as possible while
the measured AP stays within the budget.

As in NNCF's quantization with accuracy control: quantize everything that pays, measure, and give layers back to float in order.
AP is measured on images that calibration has not seen, operator times on the engine that the model is for.

1. Every layer takes its cheapest candidate. One that is not faster than float on the engine is float.
2. Layers are ordered by the error that a more exact candidate would take away, for each millisecond that it costs. The number
   of steps along this order that brings the AP into the budget is found by bisection.
3. Steps are taken back one by one, the most expensive first, while the AP stays within the budget.

AP need not fall with every step, so choices are judged by what was measured for them and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from leandetr.errors import UserError
from leandetr.quantization.config import FLOAT

Table = Mapping[str, Mapping[str, float]]
Choices = dict[str, str]  # layer -> candidate


@dataclass(frozen=True)
class Found:
    """ap, float_ap: measured on the search's images. cost, float_cost: of all layers together, as chosen and in float, in the
    unit of the table. evaluations: how often AP was measured."""

    choices: Choices
    ap: float
    float_ap: float
    cost: float
    float_cost: float
    evaluations: int

    @property
    def drop(self) -> float:
        return self.float_ap - self.ap


@dataclass(frozen=True)
class Step:
    """A layer's move to a more exact candidate."""

    layer: str
    candidate: str
    price: float  # how much costlier it is
    gain: float  # how much error it takes away


def search(
    costs: Table,
    errors: Table,
    evaluate: Callable[[Choices], float],
    max_drop: float,
    max_cost: float | None = None,
    evaluations: int = 24,
) -> Found:
    """The cheapest choices found whose AP is at most `max_drop` below the float model's.

    Args:
        costs: layer -> candidate -> cost, milliseconds as a rule; "float" is a candidate of every layer.
        errors: layer -> candidate -> error of `measure_layers`; float has none.
        evaluate: AP with given choices, a fraction.
        max_drop: in AP, 0.005 is half a point.
        max_cost: of all layers together; nothing above it is looked at.
        evaluations: at most so many measurements of AP; those of the float model and of the first and the last choices are
            always made.

    Raises:
        UserError: a layer without a float cost, or nothing within `max_cost` keeps to the budget.
    """
    for layer, found in costs.items():
        if FLOAT not in found:
            raise UserError(f"layer {layer}: its costs lack {FLOAT}; measure that too")
    exact = dict.fromkeys(costs, FLOAT)
    judge = _Judge(evaluate, exact, max_drop, evaluations)

    def error_of(layer: str, candidate: str) -> float:
        return 0.0 if candidate == FLOAT else errors[layer][candidate]

    start = {layer: min(found, key=lambda name: (found[name], error_of(layer, name))) for layer, found in costs.items()}
    steps = _steps(start, costs, error_of)

    def after(count: int) -> Choices:
        return start | {step.layer: step.candidate for step in steps[:count]}

    limit = len(steps)
    if max_cost is not None:
        if _total(start, costs) > max_cost:
            raise UserError(
                f"the target of {max_cost:.2f} cannot be met: with every layer at its fastest it is {_total(start, costs):.2f}"
            )
        while _total(after(limit), costs) > max_cost:
            limit -= 1
    chosen = after(_bisected(limit, after, judge))
    if not judge.within(chosen):
        chosen = after(limit)
        if not judge.within(chosen):
            raise UserError(
                f"no mix within the target loses at most {max_drop:g} AP: the best loses {judge.drop(chosen):.4f}; "
                "allow more loss or more time"
            )
    if max_cost is None:
        chosen = _taken_back(chosen, start, costs, judge)
    ap = judge.ap(chosen)
    return Found(chosen, ap, judge.float_ap, _total(chosen, costs), _total(exact, costs), len(judge.measured))


class _Judge:
    """AP of choices, each measured once, against the float model's."""

    def __init__(self, evaluate: Callable[[Choices], float], exact: Choices, max_drop: float, evaluations: int) -> None:
        self.evaluate, self.max_drop, self.evaluations = evaluate, max_drop, evaluations
        self.order = list(exact)
        self.measured: dict[tuple[str, ...], float] = {}
        self.float_ap = self.ap(exact)

    def ap(self, choices: Choices) -> float:
        key = tuple(choices[layer] for layer in self.order)
        if key not in self.measured:
            self.measured[key] = self.evaluate(dict(choices))
        return self.measured[key]

    def drop(self, choices: Choices) -> float:
        return self.float_ap - self.ap(choices)

    def within(self, choices: Choices) -> bool:
        return self.drop(choices) <= self.max_drop

    def may_measure(self) -> bool:
        return len(self.measured) < self.evaluations


def _bisected(limit: int, after: Callable[[int], Choices], judge: _Judge) -> int:
    """How many steps bring the AP into the budget, at most `limit`."""
    low, high = 0, limit  # the AP after `high` steps is taken to be within the budget, that before `low` not to be
    while low < high and judge.may_measure():
        middle = (low + high) // 2
        low, high = (low, middle) if judge.within(after(middle)) else (middle + 1, high)
    return high


def _steps(start: Choices, costs: Table, error_of: Callable[[str, str], float]) -> list[Step]:
    """Every layer's way from its first candidate to float, all layers' steps in the order of gain for the price."""
    steps = []
    for layer, first in start.items():
        here = first
        while True:
            better = [name for name in costs[layer] if error_of(layer, name) < error_of(layer, here)]
            if not better:
                break
            ways = [
                Step(layer, name, costs[layer][name] - costs[layer][here], error_of(layer, here) - error_of(layer, name))
                for name in better
            ]
            best = max(ways, key=_worth)
            steps.append(best)
            here = best.candidate
    # a layer's own steps come with falling worth, so sorting keeps their order
    return sorted(steps, key=_worth, reverse=True)


def _worth(step: Step) -> float:
    return step.gain / step.price if step.price > 0 else float("inf")


def _taken_back(chosen: Choices, start: Choices, costs: Table, judge: _Judge) -> Choices:
    """The choices with layers back at their first candidate, the dearest first, as long as the budget holds."""
    prices = {layer: costs[layer][chosen[layer]] - costs[layer][start[layer]] for layer in chosen}
    for layer in sorted(prices, key=prices.__getitem__, reverse=True):
        if prices[layer] > 0 and judge.may_measure() and judge.within(trial := chosen | {layer: start[layer]}):
            chosen = trial
    return chosen


def _total(choices: Choices, costs: Table) -> float:
    return sum(costs[layer][candidate] for layer, candidate in choices.items())
