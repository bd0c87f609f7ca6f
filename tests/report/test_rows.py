import doctest

import pytest

from leandetr.report import rows as numbers


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


def test_a_speedup_shows_its_interval_where_it_was_measured(make_row):
    assert numbers.speedup(make_row(speedup=1.5)) == "1.50×"
    assert numbers.speedup(make_row(speedup=1.5, speedup_low=1.44, speedup_high=1.561)) == "1.50× (1.44–1.56)"
    assert numbers.speedup(make_row(speedup=None)) == "–"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("teacher", None),
        ("baseline", "teacher"),
        ("distilled", "baseline"),
        ("distilled-static", "distilled"),
        ("distilled-weight-only", "distilled"),
        ("distilled-static-w4", "distilled-static"),
        ("distillery", None),
        ("my-own-model", None),
    ],
)
def test_each_row_is_held_against_the_step_before_it_on_its_runtime(make_row, name, expected):
    known = ["teacher", "baseline", "distilled", "distilled-static", "distilled-weight-only"]
    rows = [make_row(other, runtime) for runtime in ("pytorch", "onnxruntime") for other in known]
    found = numbers.reference(make_row(name, "onnxruntime"), rows)
    assert (found and (found["name"], found["runtime"])) == (expected and (expected, "onnxruntime"))


def test_a_float_row_of_another_runtime_is_no_reference(make_row):
    assert numbers.reference(make_row("distilled-static", "openvino"), [make_row("distilled", "onnxruntime")]) is None


@pytest.mark.parametrize(("speedup", "slower"), [(0.99, True), (1.0, False), (1.4, False), (None, False)])
def test_slower_than_float_is_said_of_quantized_rows_below_one(make_row, speedup, slower):
    rows = [make_row("distilled"), make_row("distilled-dynamic", speedup=speedup)]
    assert numbers.slower_than_float(rows[1], rows) is slower
    assert ("slower than float" in numbers.note(rows[1], rows)) is slower


@pytest.mark.parametrize(("highest", "slower"), [(0.99, True), (1.04, False)])
def test_a_ratio_whose_interval_reaches_one_is_not_called_slower(make_row, highest, slower):
    rows = [make_row("distilled"), make_row("distilled-dynamic", speedup=0.98, speedup_low=0.97, speedup_high=highest)]
    assert numbers.slower_than_float(rows[1], rows) is slower


def test_slower_than_float_is_not_said_of_a_float_row(make_row):
    rows = [make_row("teacher"), make_row("baseline", speedup=0.5)]
    assert not numbers.slower_than_float(rows[1], rows)


def test_changes_are_differences_of_ap_and_ratios_of_cost(make_row):
    rows = [make_row("distilled"), make_row("distilled-static", ap=0.385, latency_ms=5.0, size_bytes=2_500_000, speedup=4)]
    assert numbers.changes(rows) == [("distilled-static", "onnxruntime", "distilled", "-0.015", "×0.25", "×0.25")]


def test_changes_of_what_is_undefined_are_dashes(make_row):
    rows = [make_row("distilled", ap=None, latency_ms=None), make_row("distilled-static", size_bytes=None)]
    assert numbers.changes(rows)[0][3:] == ("–", "–", "–")


def test_the_headline_compares_on_one_runtime(results):
    line = numbers.headline(results["rows"])
    assert line.startswith("Fastest: distilled-static on onnxruntime, AP 0.300, 5.0 ms, 2.90 MB.")
    assert line.endswith(
        "teacher on onnxruntime, AP 0.450, 40.0 ms, 30.00 MB: 8.0 times as fast, 10.3 times smaller, AP -0.150."
    )


def test_the_headline_says_when_the_student_alone_is_better(make_row):
    rows = [make_row(name="teacher", latency_ms=9.0), make_row(name="baseline", ap=0.35), make_row(name="distilled", ap=0.3)]
    rows[2]["latency_ms"] = 1.0
    assert "The student without its teacher is more accurate: baseline on " in numbers.headline(rows)
    rows[1]["ap"] = 0.29
    assert "more accurate" not in numbers.headline(rows)


def test_a_quantized_row_is_held_against_a_float_one(make_row):
    rows = [make_row("distilled"), make_row("distilled-static", theoretical_speedup=3.5)]
    rows.append(make_row("distilled-static-4", theoretical_speedup=5.0))
    assert [numbers.reference(row, rows) for row in rows[1:]] == [rows[0], rows[0]]


@pytest.mark.parametrize("changes", [{"latency_ms": None}, {}])
def test_there_is_no_headline_without_two_rows_to_compare(make_row, changes):
    assert numbers.headline([make_row(**changes)]) == ""
    assert numbers.headline([]) == ""


def test_what_is_theory_stands_in_a_column_of_its_own(make_row):
    measured, both = (
        [column.title for column in numbers.cost_columns([make_row(), row])]
        for row in (make_row(), make_row() | {"theoretical_speedup": 7.3})
    )
    place = measured.index("speedup") + 1
    assert both == [*measured[:place], "in theory", *measured[place:]]
