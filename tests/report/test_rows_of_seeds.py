"""Rows made of what several seeds measured."""

import doctest

import pytest

from leandetr.report import rows
from leandetr.report.rows import combine, surely_slower

RUN = dict.fromkeys(["ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"], 0.3)
RUN |= {"draws": [0.3, 0.3], "evaluate_seconds": 1.0, "size_bytes": 10**6, "parameters": 10**6, "curve": {1: 0.1, 2: 0.3}}


def test_the_examples_in_the_docstrings_hold():
    tried = doctest.testmod(rows)
    assert tried.attempted > 0
    assert tried.failed == 0


def test_a_change_is_the_mean_difference_over_the_seeds_that_both_have():
    found = {seed: RUN | {"ap": ap, "draws": [ap, ap + 0.1]} for seed, ap in enumerate([0.3, 0.5, 0.9])}
    held = {seed: RUN | {"ap": ap, "draws": [ap, ap + 0.1]} for seed, ap in enumerate([0.2, 0.2])}
    row = combine("taught", "pytorch", found, [0, 1, 2], "taught", ("alone", held))
    assert row["change"] == pytest.approx(0.2)
    assert row["change_spread"] == pytest.approx(0.1 * 2**0.5)
    assert row["change_interval"] == pytest.approx((0.2, 0.2))  # of the paired draws, below
    assert (row["seeds"], row["against"], row["float_row"]) == ([0, 1, 2], "alone", "taught")


def test_what_is_undefined_enters_no_mean():
    found = {0: RUN | {"ap_small": -1.0}, 1: RUN | {"ap": -1.0, "ap_small": -1.0}}
    row = combine("a", "pytorch", found, [0, 1], "a", ("b", {0: RUN, 1: RUN}))
    assert (row["ap_small"], row["ap"], row["change"], row["change_spread"]) == (None, 0.3, 0.0, None)


def test_a_row_without_a_result_is_there():
    row = combine("a-static", "pytorch", {}, [0, 1], "a")
    assert (row["ap"], row["seeds"], row["planned"], row["curve"], row["size_bytes"]) == (None, [], [0, 1], [], None)


def test_a_curve_is_the_mean_of_the_seeds_that_have_come_so_far():
    row = combine("a", "pytorch", {0: RUN, 1: RUN | {"curve": {1: 0.3}}}, [0, 1], "a")
    assert [(point["epoch"], point["ap"]) for point in row["curve"]] == [(1, pytest.approx(0.2)), (2, 0.3)]
    assert row["curve"][1]["spread"] is None


@pytest.mark.parametrize(
    ("measured", "slower"),
    [({"speedup": 0.9}, True), ({"speedup": 0.9, "speedup_high": 1.02}, False), ({"speedup": None}, False), ({}, False)],
)
def test_slower_is_what_is_below_1_with_its_whole_interval(measured, slower):
    assert surely_slower(measured) is slower
