"""What a table says of rows: what each is held against, what is slower than float, and the words around it."""

import pytest

from leandetr.report import columns

DISTILLED = {"against": "distilled", "float_row": "distilled"}


def test_a_speedup_shows_its_interval_where_it_was_measured(make_row):
    assert columns.speedup(make_row(speedup=1.5)) == "1.50×"
    assert columns.speedup(make_row(speedup=1.5, speedup_low=1.44, speedup_high=1.561)) == "1.50× (1.44–1.56)"
    assert columns.speedup(make_row(speedup=None)) == "–"


@pytest.mark.parametrize(("speedup", "slower"), [(0.99, True), (1.0, False), (1.4, False), (None, False)])
def test_slower_than_float_is_said_of_quantized_rows_below_one(make_row, speedup, slower):
    row = make_row("distilled-dynamic", speedup=speedup, **DISTILLED)
    assert columns.slower_than_float(row) is slower
    assert ("slower than float" in columns.note(row)) is slower


@pytest.mark.parametrize(("highest", "slower"), [(0.99, True), (1.04, False)])
def test_a_ratio_whose_interval_reaches_one_is_not_called_slower(make_row, highest, slower):
    row = make_row("distilled-dynamic", speedup=0.98, speedup_low=0.97, speedup_high=highest, **DISTILLED)
    assert columns.slower_than_float(row) is slower


def test_slower_than_float_is_not_said_of_a_float_row(make_row):
    assert not columns.slower_than_float(make_row("baseline", speedup=0.5, against="teacher"))


def test_changes_are_differences_of_ap_and_ratios_of_cost(make_row):
    static = {
        "latency_ms": 5.0,
        "size_bytes": 2_500_000,
        "change": -0.0151,
        "change_spread": 0.002,
        "change_interval": (-0.02, 0.004),
        **DISTILLED,
    }
    rows = [make_row("distilled"), make_row("distilled-static", **static)]
    assert columns.changes(rows) == [
        ("distilled-static", "onnxruntime", "distilled", "-0.015 ±0.002", "-0.020 to +0.004", "×0.25", "×0.25")
    ]


def test_changes_of_what_is_undefined_are_dashes(make_row):
    rows = [make_row("distilled", ap=None, latency_ms=None), make_row("distilled-static", size_bytes=None, **DISTILLED)]
    assert columns.changes(rows)[0][3:] == ("–", "–", "–", "–")


def test_a_row_of_another_runtime_is_nothing_to_be_held_against(make_row):
    rows = [make_row("distilled", "onnxruntime"), make_row("distilled-static", "openvino", **DISTILLED)]
    assert columns.changes(rows) == []


def test_a_row_without_a_result_has_changed_nothing_yet(make_row):
    rows = [make_row("distilled"), make_row("distilled-static", seeds=[], size_bytes=None, **DISTILLED)]
    assert columns.changes(rows) == []


def test_the_headline_compares_on_one_runtime(results):
    line = columns.headline(results["rows"])
    assert line.startswith("Fastest: distilled-static on onnxruntime, AP 0.300, 5.0 ms, 2.90 MB.")
    assert line.endswith(
        "teacher on onnxruntime, AP 0.450, 40.0 ms, 30.00 MB: 8.0 times as fast, 10.3 times smaller, AP -0.150."
    )


def test_the_headline_says_when_the_student_alone_is_better(make_row):
    rows = [make_row(latency_ms=9.0), make_row("alone", ap=0.35), make_row("taught", ap=0.3, against="alone", latency_ms=2.0)]
    assert "More accurate than the fastest: alone on " in columns.headline(rows)
    rows.append(make_row("taught-static", ap=0.3, against="taught", float_row="taught", latency_ms=1.0))
    assert "More accurate than the fastest: alone on " in columns.headline(rows)
    rows[1]["ap"] = 0.29
    assert "ore accurate" not in columns.headline(rows)


@pytest.mark.parametrize("changes", [{"latency_ms": None}, {}])
def test_there_is_no_headline_without_two_rows_to_compare(make_row, changes):
    assert columns.headline([make_row(**changes)]) == ""
    assert columns.headline([]) == ""


def test_what_is_theory_stands_in_a_column_of_its_own(make_row):
    measured, both = (
        [column.title for column in columns.cost_columns([make_row(), row])]
        for row in (make_row(), make_row() | {"theoretical_speedup": 7.3})
    )
    place = measured.index("speedup") + 1
    assert both == [*measured[:place], "in theory", *measured[place:]]


def titles(*rows):
    return [column.title for column in columns.cost_columns(rows)]


def test_seeds_and_epochs_have_columns_where_there_are_any(make_row):
    assert titles(make_row()) == ["row", "runtime", "AP", "change", "AP50", "ms", "p90 ms", "speedup", "MB", "M params"]
    assert titles(make_row(seeds=[0], planned=[0, 1]))[:5] == ["row", "runtime", "seeds", "AP", "change"]
    assert [column.title for column in columns.accuracy_columns([4])][-2:] == ["epoch 4", "evaluation s"]
    assert "epoch N" in columns.accuracy_legend([4])
    assert "epoch N" not in columns.accuracy_legend()


def test_the_legend_speaks_of_what_the_table_has(make_row):
    row = make_row()
    assert "median" in columns.legend([row])
    assert "standard deviation" not in columns.legend([row])
    assert "held against" not in columns.legend([row])
    several = columns.legend([row | {"planned": [0, 1], "against": "a"}])
    assert all(words in several for words in ("standard deviation", "held against"))
    untimed = {key: value for key, value in row.items() if key not in ("latency_ms", "speedup")}
    assert "median" not in columns.legend([untimed])
