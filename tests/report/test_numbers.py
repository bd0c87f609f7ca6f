import doctest

import pytest

from leandetr.report import numbers


def test_the_examples_in_the_docstrings_hold():
    tried = doctest.testmod(numbers)
    assert tried.attempted > 0
    assert tried.failed == 0


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        (numbers.accuracy, 0.3456, "0.346"),
        (numbers.accuracy, 0.0, "0.000"),
        (numbers.accuracy, -1, "–"),
        (numbers.accuracy, None, "–"),
        (numbers.accuracy, float("nan"), "–"),
        (numbers.milliseconds, 12.34, "12.3"),
        (numbers.milliseconds, None, "–"),
        (numbers.millions, 2_881_000, "2.88"),
        (numbers.millions, None, "–"),
    ],
)
def test_numbers_are_printed_alike_everywhere(text, value, expected):
    assert text(value) == expected
