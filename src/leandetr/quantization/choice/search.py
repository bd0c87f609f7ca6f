"""Mixed precision under an accuracy budget: for every layer one of several candidates, the whole as cheap as possible while
the measured AP stays within the budget.

As in NNCF's quantization with accuracy control: quantize everything that pays, measure, and give layers back to float in order.
AP is measured on images that calibration has not seen, operator times on the engine that the model is for.

1. Every layer takes its cheapest candidate. One that is not faster than float on the engine is float.
2. Layers are ordered by the error that a more exact candidate would take away, for each millisecond that it costs. The number
   of steps along this order that brings the AP into the budget is found by bisection.
3. Steps are taken back one by one, the most expensive first, while the AP stays within the budget.

AP need not fall with every step, so an assignment is judged by what was measured for it and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from leandetr.errors import UserError

Table = Mapping[str, Mapping[str, float]]
Assignment = dict[str, str]


@dataclass(frozen=True)
class Found:
    """assignment: layer -> candidate. ap, float_ap: measured on the search's images. cost: of the assigned layers together, in
    the unit of the table. float_cost: the same for the float model. evaluations: how often AP was measured."""

    assignment: Assignment
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
    evaluate: Callable[[Assignment], float],
    max_drop: float,
    max_cost: float | None = None,
    float_candidate: str = "float",
    evaluations: int = 24,
) -> Found:
    """The cheapest assignment found whose AP is at most `max_drop` below the float model's.

    Args:
        costs: layer -> candidate -> cost, milliseconds as a rule; every layer has `float_candidate`.
        errors: layer -> candidate -> error of `layer_errors`; float has none.
        evaluate: AP of an assignment, a fraction.
        max_drop: in AP, 0.005 is half a point.
        max_cost: of the assigned layers together; no assignment above it is looked at.
        evaluations: at most so many measurements of AP; those of the float model and of the first and the last assignment are
            always made.

    Raises:
        UserError: a layer without a float cost, or no assignment within `max_cost` keeps the budget.
    """
    for layer, found in costs.items():
        if float_candidate not in found:
            raise UserError(f"layer {layer}: its costs lack {float_candidate}; measure that too")
    measured: dict[tuple[str, ...], float] = {}

    def ap_of(assignment: Assignment) -> float:
        key = tuple(assignment[layer] for layer in costs)
        if key not in measured:
            measured[key] = evaluate(dict(assignment))
        return measured[key]

    def error_of(layer: str, candidate: str) -> float:
        return 0.0 if candidate == float_candidate else errors[layer][candidate]

    exact = dict.fromkeys(costs, float_candidate)
    float_ap = ap_of(exact)
    start = {layer: min(found, key=lambda name: (found[name], error_of(layer, name))) for layer, found in costs.items()}
    steps = _steps(start, costs, error_of)

    def after(count: int) -> Assignment:
        return start | {step.layer: step.candidate for step in steps[:count]}

    def within(assignment: Assignment) -> bool:
        return float_ap - ap_of(assignment) <= max_drop

    limit = len(steps)
    if max_cost is not None:
        if _total(start, costs) > max_cost:
            raise UserError(
                f"the target of {max_cost:.2f} cannot be met: with every layer at its fastest it is {_total(start, costs):.2f}"
            )
        while _total(after(limit), costs) > max_cost:
            limit -= 1
    low, high = 0, limit  # the AP after `high` steps is taken to be within the budget, that before `low` not to be
    while low < high and len(measured) < evaluations:
        middle = (low + high) // 2
        low, high = (low, middle) if within(after(middle)) else (middle + 1, high)
    chosen = after(high)
    if not within(chosen):
        chosen = after(limit)
        if not within(chosen):
            raise UserError(
                f"no mix within the target loses at most {max_drop:g} AP: the best loses {float_ap - ap_of(chosen):.4f}; "
                "allow more loss or more time"
            )
    if max_cost is None:
        chosen = _taken_back(chosen, start, costs, within, lambda: len(measured) < evaluations)
    return Found(chosen, ap_of(chosen), float_ap, _total(chosen, costs), _total(exact, costs), len(measured))


def _steps(start: Assignment, costs: Table, error_of: Callable[[str, str], float]) -> list[Step]:
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


def _taken_back(
    chosen: Assignment,
    start: Assignment,
    costs: Table,
    within: Callable[[Assignment], bool],
    may_measure: Callable[[], bool],
) -> Assignment:
    """The assignment with layers back at their first candidate, the dearest first, as long as the budget holds."""
    prices = {layer: costs[layer][chosen[layer]] - costs[layer][start[layer]] for layer in chosen}
    for layer in sorted(prices, key=prices.__getitem__, reverse=True):
        if prices[layer] > 0 and may_measure() and within(trial := chosen | {layer: start[layer]}):
            chosen = trial
    return chosen


def _total(assignment: Assignment, costs: Table) -> float:
    return sum(costs[layer][candidate] for layer, candidate in assignment.items())
