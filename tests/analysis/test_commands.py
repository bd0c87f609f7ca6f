"""Every command prints its numbers as a table and names the file to look at."""

import pytest
from typer.testing import CliRunner

from leandetr.cli import app
from leandetr.detectors.query_sets import add_distillation_queries


@pytest.mark.parametrize(
    ("command", "head", "files"),
    [
        ("similarity", "between the sets", ["similarity.json", "similarity.png"]),
        ("stability", "objects moved", ["stability.json", "stability.png"]),
        ("masks", "active inside", ["masks-000001.png", "masks.json"]),
        ("information", "query codes", ["information.json", "information.png", "queries.png"]),
    ],
)
def test_a_table_on_the_terminal_and_files_in_the_folder(saved, more, tmp_path, monkeypatch, command, head, files):
    monkeypatch.setattr("leandetr.cli.analyze.out_console.width", 200)
    model = saved(change=lambda detector: add_distillation_queries(detector.model, 5))
    arguments = [str(model), "--data", str(more.images.parent), "--out", str(tmp_path / "out")]
    arguments += ["--image", "000001.jpg", "--limit", "2"] if command == "masks" else []
    result = CliRunner().invoke(app, ["analyze", command, *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    assert head in result.output
    assert "model" in result.output
    assert str(tmp_path / "out") in result.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == files
