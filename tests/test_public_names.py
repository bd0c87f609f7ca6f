"""`import leandetr` offers what `__init__.pyi` says, to readers of types and at run time alike."""

import ast
import importlib
import sys
from pathlib import Path

import pytest

import leandetr
from leandetr.errors import UserError

STUB = ast.parse(Path(leandetr.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
HOMES = {
    name.name: f"leandetr.{statement.module}"
    for statement in STUB.body
    if isinstance(statement, ast.ImportFrom)
    for name in statement.names
}


@pytest.mark.parametrize("name", HOMES)
def test_a_name_is_its_modules_own(name):
    assert getattr(leandetr, name) is getattr(importlib.import_module(HOMES[name]), name)


def test_the_stub_lists_what_it_imports():
    (listed,) = (ast.literal_eval(part.value) for part in STUB.body if isinstance(part, ast.Assign))
    assert listed == sorted(HOMES)
    assert sorted(leandetr.__all__) == listed


def test_the_first_name_that_is_used_teaches_transformers_to_read_checkpoints(monkeypatch):
    monkeypatch.delitem(sys.modules, "leandetr.transformers", raising=False)
    assert leandetr.__getattr__("UserError") is UserError  # asked for the first time: later it is there as any attribute
    assert "leandetr.transformers" in sys.modules


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = leandetr.nothing_of_the_kind
