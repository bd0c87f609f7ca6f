"""The schedule as its definition says, step by step."""

import math
from itertools import pairwise

import pytest

from leandetr.errors import UserError
from leandetr.training.config import Training


def test_cosine_rises_falls_and_ends_at_nothing():
    config = Training(warmup=0.1)
    factors = [config.factor(step, 100) for step in range(101)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10] == pytest.approx(1)
    assert factors[55] == pytest.approx(0.5)
    assert factors[25] == pytest.approx(0.5 * (1 + math.cos(math.pi * 15 / 90)))
    assert factors[100] == pytest.approx(0, abs=1e-12)
    assert all(later <= earlier for earlier, later in pairwise(factors[10:]))


def test_step_falls_to_a_tenth_at_every_drop():
    config = Training(schedule="step", warmup=0)
    assert [config.factor(step, 10) for step in range(10)] == [1.0] * 8 + [0.1] * 2
    twice = Training(schedule="step", drops=[8 / 12, 11 / 12], warmup=0)  # after epochs 8 and 11 of 12
    assert [twice.factor(step, 24) for step in range(24)] == pytest.approx([1.0] * 16 + [0.1] * 6 + [0.01] * 2)


def test_passes_are_the_epochs_or_what_the_steps_need():
    assert Training(epochs=7).passes(100) == 7
    short = Training(epochs=7, max_steps=10, batch_size=4)
    assert [short.passes(images) for images in (100, 40, 39, 37, 36)] == [1, 1, 1, 1, 2]
    assert short.passes(72, processes=2) == 2
    assert Training(max_steps=10, batch_size=4, accumulate=2).passes(40) == 2


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_shortest_trainings_have_a_rate(steps):
    for config in (Training(), Training(warmup=0), Training(schedule="step")):
        assert all(0 < config.factor(step, steps) <= 1 for step in range(steps))


@pytest.mark.parametrize(
    "wrong",
    [
        {"epoch": 3},
        {"epochs": 0},
        {"lr": 0},
        {"lr": math.inf},
        {"seed": -1},
        {"seed": 2**32},
        {"keep_epochs": [1, 51]},
        {"ema": 1},
        {"warmup": 1},
        {"schedule": "linear"},
        {"drops": [0.9, 0.6]},
        {"drops": [1.0]},
        {"precision": "int8"},
        {"clip": -1},
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        Training(**wrong)
