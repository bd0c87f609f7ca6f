"""The search finds what an exhaustive one finds where layers add up, and never breaks a budget."""

import itertools
import random

import pytest

from leandetr.errors import UserError
from leandetr.quantization.choice.search import search


def problem(layers, seed, candidates=("int8",)):
    """Costs and errors of layers; a candidate is faster than float or, now and then, slower."""
    choose = random.Random(seed)
    costs = {f"l{i}": {"float": 1.0} | {name: choose.uniform(0.3, 1.2) for name in candidates} for i in range(layers)}
    errors = {layer: {name: choose.uniform(0.0005, 0.004) for name in candidates} for layer in costs}
    return costs, errors


def additive(errors, float_ap=0.5):
    """An AP that falls by the errors of the layers."""

    def evaluate(assignment):
        return float_ap - sum(errors[layer].get(candidate, 0.0) for layer, candidate in assignment.items())

    return evaluate


def total(costs, assignment):
    return sum(costs[layer][candidate] for layer, candidate in assignment.items())


def cheapest(costs, evaluate, max_drop):
    """By looking at every assignment."""
    float_ap = evaluate(dict.fromkeys(costs, "float"))
    every = (dict(zip(costs, chosen)) for chosen in itertools.product(*costs.values()))
    return min(total(costs, one) for one in every if float_ap - evaluate(one) <= max_drop)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("max_drop", [0.0, 0.004, 0.01, 1.0])
def test_one_gain_for_all_layers_gives_the_cheapest_assignment(seed, max_drop):
    costs, errors = problem(8, seed)
    costs = {layer: {"float": 1.0, "int8": 0.6} for layer in costs}
    found = search(costs, errors, additive(errors), max_drop)
    assert found.drop <= max_drop
    assert found.cost == pytest.approx(cheapest(costs, additive(errors), max_drop))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("candidates", [("int8",), ("int8", "int4")])
def test_it_comes_close_to_the_cheapest_within_the_budget(seed, candidates):
    costs, errors = problem(7, seed, candidates)
    evaluate = additive(errors)
    found = search(costs, errors, evaluate, max_drop=0.008)
    best = cheapest(costs, evaluate, 0.008)
    assert found.drop <= 0.008
    assert best <= found.cost <= best + 0.15 * (found.float_cost - best)
    assert (found.ap, found.cost) == (evaluate(found.choices), total(costs, found.choices))


def test_layers_that_are_not_faster_stay_float():
    costs = {"fast": {"float": 1.0, "int8": 0.5}, "slow": {"float": 1.0, "int8": 1.1}}
    errors = {layer: {"int8": 0.0} for layer in costs}
    assert search(costs, errors, lambda _: 0.5, 0.01).choices == {"fast": "int8", "slow": "float"}


def test_no_more_measurements_than_allowed():
    costs, errors = problem(40, 0)
    calls = []

    def evaluate(assignment):
        calls.append(assignment)
        return additive(errors)(assignment)

    found = search(costs, errors, evaluate, 0.01, evaluations=9)
    assert len(calls) == found.evaluations <= 9
    assert found.drop <= 0.01


def test_a_target_is_met_or_refused():
    costs, errors = problem(8, 1)
    evaluate = additive(errors)
    free = search(costs, errors, evaluate, 0.01)
    found = search(costs, errors, evaluate, 0.01, max_cost=free.cost + 0.2)
    assert found.cost <= free.cost + 0.2
    with pytest.raises(UserError, match="allow more loss or more time"):
        search(costs, errors, evaluate, 0.0, max_cost=free.float_cost - 1.0)
    with pytest.raises(UserError, match="cannot be met"):
        search(costs, errors, evaluate, 1.0, max_cost=0.1)


def test_a_layer_without_a_float_cost():
    with pytest.raises(UserError, match="lack float"):
        search({"a": {"int8": 1.0}}, {"a": {"int8": 0.1}}, lambda _: 0.5, 0.01)
