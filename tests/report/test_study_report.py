"""A study's report: the columns that its rows have something for, and the words that go with them."""

from itertools import takewhile

import pytest

from leandetr.report.study import combine, write_study

RUN = dict.fromkeys(["ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"], 0.3)
RUN |= {"evaluate_seconds": 1.0, "size_bytes": 10**6, "parameters": 10**6, "curve": {}}


def row(name, high=None, **more):
    times = {} if high is None else {"latency_ms": 4.0, "latency_p90_ms": 5.0, "speedup": high - 0.05, "speedup_high": high}
    return combine(name, "onnxruntime", {0: RUN}, [0]) | times | more


@pytest.fixture
def report(tmp_path):
    def written(*rows):
        results = {"rows": rows, "epochs": [], "left": "", "steps": [], "environment": {}, "command": "c"}
        results["recipe"] = "data: {folder: ../data/groceries}"
        write_study(results, tmp_path)
        lines = (tmp_path / "report.md").read_text(encoding="utf-8").splitlines()
        table = list(takewhile(lambda line: line.startswith("|"), lines[2:]))
        return table, lines, (tmp_path / "report.html").read_text(encoding="utf-8")

    return written


def test_a_row_that_is_slower_than_its_float_row_says_so(report):
    table, _, page = report(row("a", 1.0, speedup=1.0), row("a-dynamic", 0.9), row("a-static", 1.3))
    assert [line.rstrip(" |").endswith("slower than float") for line in table[2:]] == [False, True, False]
    assert page.count('<span class="warn">slower than float</span>') == 1


def test_an_interval_that_reaches_1_is_no_slower(report):
    table, lines, _ = report(row("a", 1.0, speedup=1.0), row("a-dynamic", 1.02))
    assert "note" not in table[0]
    assert any("against the float row" in line for line in lines)


def test_without_latencies_there_is_no_word_of_them(report):
    table, lines, _ = report(row("a"))
    assert "speedup" not in table[0]
    assert not any("against the float row" in line for line in lines)


def test_it_is_named_after_its_data_and_engines_come_first(report):
    table, lines, page = report(row("a", runtime="pytorch"), row("a"))
    assert lines[0] == "# Study on groceries"
    assert "<h1>Study on groceries</h1>" in page
    assert [line.split()[3] for line in table[2:]] == ["onnxruntime", "pytorch"]


@pytest.mark.parametrize(
    ("against", "said"),
    [
        (
            {"a": None, "a-quick": "a", "a-quick-static": "a", "b": None, "b-static": "b"},
            "in AP to the row that a name begins with, seed by seed",
        ),
        ({"a": None, "b": "a", "c": "a", "d": "c"}, "in AP to a, d to c, seed by seed"),
        ({"a": None, "b": "a", "b-static": "b"}, "in AP to the row that a name begins with, else to a, seed by seed"),
        ({"a": None}, ""),
    ],
)
def test_the_legend_says_what_a_change_is_to(report, against, said):
    _, lines, _ = report(*(row(name, against=other) for name, other in against.items()))
    (legend,) = (line for line in lines if line.startswith("AP: "))
    assert said in legend
    assert ("change: " in legend) == bool(said)
    assert "epoch N" not in legend
