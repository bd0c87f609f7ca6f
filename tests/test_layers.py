"""Imports run downwards: the contract stands in pyproject.toml, import-linter reads it."""

import pkgutil
import re
import tomllib
from pathlib import Path

from importlinter.cli import lint_imports

import leandetr

CONFIG = Path(__file__).resolve().parents[1] / "pyproject.toml"


def test_imports_run_downwards(capfd):
    status = lint_imports(config_filename=str(CONFIG), no_cache=True, no_logo=True)
    assert status == 0, capfd.readouterr().out


def test_every_module_has_its_layer():
    (contract,) = tomllib.loads(CONFIG.read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    placed = set(re.findall(r"leandetr\.(\w+)", " ".join(contract["layers"])))
    found = {module.name for module in pkgutil.iter_modules(leandetr.__path__)} - {"__main__"}
    assert found <= placed
