"""The rules stand in pyproject.toml; `make lint` runs the same commands."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LINES = 60  # of a function, without its docstring


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=["lint", "format"])
def test_ruff_has_nothing_to_say(command):
    run = subprocess.run([sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.slow
def test_mypy_has_nothing_to_say(tmp_path):
    """`py.typed` promises the types."""
    command = [sys.executable, "-m", "mypy", "--cache-dir", tmp_path]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_a_long_function_says_why():
    """`# long: ...` on the line of its def."""
    silent = [
        f"{path.relative_to(ROOT)}:{function.lineno} {function.name}: {length} lines"
        for path in sorted((ROOT / "src").rglob("*.py"))
        for function, length in functions(path.read_text(encoding="utf-8"))
        if length > LINES
    ]
    assert not silent


def functions(source):
    """Every function without a reason, and its lines."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and "# long: " not in lines[node.lineno - 1]:
            docstring = node.body[0] if ast.get_docstring(node) is not None else None
            yield node, node.end_lineno - node.lineno + 1 - (docstring.end_lineno - docstring.lineno + 1 if docstring else 0)
