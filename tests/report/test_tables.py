import pytest
from rich.console import Console

from leandetr.report.tables import results_table, text_table


def printed(rows, width: int) -> str:
    console = Console(width=width, force_terminal=False)
    with console.capture() as capture:
        console.print(results_table(rows))
    return capture.get()


@pytest.mark.parametrize("width", [80, 160])
def test_names_and_numbers_are_whole_in_a_terminal_of_80_columns(results, width):
    text = printed(results["rows"], width)
    for row in results["rows"]:
        assert row["name"] in text
        assert f"{row['latency_ms']:.1f}" in text
    assert text.count("0.450") == 2
    assert max(map(len, text.splitlines())) <= width
    words = " ".join(text.split())
    assert words.count("slower than") == 2
    assert "…" not in text


def test_rows_stand_under_their_runtime(results):
    lines = [line.split() for line in printed(results["rows"], 160).splitlines()]
    firsts = [line[0] for line in lines if line and line[0] in ("pytorch", "onnxruntime", "teacher")]
    assert firsts == ["pytorch", "teacher", "onnxruntime", "teacher"]


def test_a_long_path_is_folded_not_cut(make_row):
    path = "runs/" + "a-long-folder/" * 5 + "model.onnx"
    text = printed([make_row(path)], 80)
    lines = text.splitlines()[3:]
    width = lines[0].index(" ")
    assert "".join(line[:width].strip() for line in lines) == path


def test_brackets_in_a_name_are_not_markup(make_row):
    assert "[bold]model" in printed([make_row("[bold]model")], 80)


def test_no_rows_is_an_empty_table():
    assert "AP" in printed([], 80)


def test_without_latencies_the_terminal_shows_the_trainings(make_row):
    row = {key: value for key, value in make_row().items() if "latency" not in key and "speedup" not in key}
    row |= {"curve": [{"epoch": 2, "ap": 0.25, "spread": None}], "change": 0.02, "planned": [0, 1]}
    text = " ".join(printed([row], 80).split())
    assert text.startswith("row seeds AP change AP50")
    assert "teacher 1 of 2 0.400 +0.020 0.600" in text


def test_a_cell_cannot_break_its_table():
    lines = text_table(["a", "b"], [["x|y", "one\ntwo"]], [False, True]).splitlines()
    assert lines[2] == "| x\\|y | one two |"
