import pytest

from leandetr.report.page import contents, markdown


def table_lines(text: str, heading: str) -> list[str]:
    section = text.split(heading)[1].split("\n## ", maxsplit=1)[0]
    return [line for line in section.splitlines() if line.startswith("|")]


def test_every_row_is_in_the_table_with_its_numbers(results):
    lines = table_lines(markdown(contents(results)), "# What it cost")
    assert len(lines) == 2 + len(results["rows"])
    cells = [cell.strip() for cell in lines[6].strip("|").split("|")]
    assert cells == ["distilled-static", "onnxruntime", "0.300", "-0.010", "0.600", "5.0", "24.0", "2.00×", "2.90", "2.50", ""]


def test_slower_than_float_is_written_on_its_rows_only(results):
    lines = table_lines(markdown(contents(results)), "# What it cost")
    slower = [line for line in lines if "slower than float" in line]
    assert len(slower) == 2
    assert all("distilled-weight-only" in line for line in slower)


def test_an_undefined_ap_is_a_dash(results):
    lines = table_lines(markdown(contents(results)), "## Accuracy")
    assert all(line.split("|")[6].strip() == "–" for line in lines[2:])


def test_the_source_is_aligned_for_a_terminal(results):
    for heading in ("# What it cost", "## What each step changed", "## Accuracy", "## Steps"):
        assert len({len(line) for line in table_lines(markdown(contents(results)), heading)}) == 1


def test_environment_command_recipe_and_steps_are_there(results):
    text = markdown(contents(results))
    for expected in ("- cpu: a processor", "- versions torch: 2.11", results["command"], results["recipe"], "1 min 23 s"):
        assert expected in text


@pytest.mark.parametrize("key", ["command", "recipe", "steps"])
def test_what_a_benchmark_does_not_have_is_left_out(results, key):
    del results[key]
    assert f"## {key.capitalize()}" not in markdown(contents(results))


def test_it_is_named_after_its_data_and_engines_come_first(results):
    results["recipe"] = "data: {folder: ../data/groceries}"
    text = markdown(contents(results))
    assert text.startswith("# What it cost on groceries\n")
    runtimes = [line.split("|")[2].strip() for line in table_lines(text, "# What it cost")[2:]]
    assert runtimes == ["onnxruntime"] * 5 + ["pytorch"] * 5


def test_what_is_left_to_do_stands_at_the_top(results):
    results["left"] = "3 of 7 results are left"
    assert "\n\n3 of 7 results are left\n\n|" in markdown(contents(results))


def test_what_looks_like_html_in_a_name_is_text_and_a_recipe_ends_no_fence(results):
    results["rows"][0]["name"] = "<script>alert(1)</script>"
    results["recipe"] = "data: {folder: '<b>'}\nnote: |\n  ```\n  <img src=x>\n"
    text = markdown(contents(results))
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert text.startswith("# What it cost on &lt;b&gt;")
    assert text.rstrip().endswith("\n````")
