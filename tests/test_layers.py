"""Imports run downwards: the contract stands in pyproject.toml, import-linter reads it."""

import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import grimp

import leandetr

CONFIG = Path(__file__).resolve().parents[1] / "pyproject.toml"


def test_imports_run_downwards():
    linter = Path(sys.executable).parent / "lint-imports"  # as its own process: in this one it meddles with captured output
    command = [linter, "--config", CONFIG, "--no-cache", "--no-logo"]
    found = subprocess.run(command, capture_output=True, text=True, check=False, cwd=CONFIG.parent)
    assert found.returncode == 0, found.stdout + found.stderr


def test_every_module_has_its_layer():
    contract, _ = tomllib.loads(CONFIG.read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    placed = set(re.findall(r"leandetr\.(\w+)", " ".join(contract["layers"])))
    found = {module.name for module in pkgutil.iter_modules(leandetr.__path__)} - {"__main__"}
    assert found <= placed


def test_no_module_imports_itself_through_others():
    """Imports inside functions and those for types alone count too: a circle that does not run is still one to read."""
    graph = grimp.build_graph("leandetr", cache_dir=None)
    circles = {
        frozenset(chain)
        for importer in graph.modules
        for imported in graph.find_modules_directly_imported_by(importer)
        if (chain := graph.find_shortest_chain(imported, importer))
    }
    assert not circles
