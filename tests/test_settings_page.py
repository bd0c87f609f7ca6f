"""docs/settings.md names everything that can be set, and nothing else."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from leandetr.data.transforms import AUGMENTATIONS
from leandetr.distillation.methods import METHODS, TERMS, options_of
from leandetr.quantization.config import SCHEMES
from leandetr.training.config import Training

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "settings.md").read_text()


def rows_of(heading: str) -> dict[str, str]:
    """The tables under a heading: name -> its row; several names may share one."""
    text = PAGE.split(f"\n## {heading}")[1].split("\n## ")[0]
    found: dict[str, str] = {}
    for line in text.splitlines():
        cells = line.split("|")
        if len(cells) > 2:
            for name in re.findall(r"`([\w.-]+)`", cells[1]):
                found[name] = found.get(name, "") + line
    return found


def test_every_key_of_a_training():
    rows = rows_of("Training")
    assert set(rows) == set(Training.model_fields)
    assert all(f"`{name}`" in rows["augment"] for name in AUGMENTATIONS)


def test_every_method_and_every_option_of_a_term():
    rows = rows_of("Distillation")
    options = {name: options_of(term) for name, term in TERMS.items()}
    assert set(rows) == set(METHODS) | {name for name, keys in options.items() if keys}
    for name, keys in options.items():
        assert all(f"`{key}`" in rows[name] for key in keys), name


@pytest.mark.parametrize("name", SCHEMES)
def test_every_option_of_a_scheme(name):
    row = rows_of("Quantization")[name]
    assert all(f"`{field.name}`" in row for field in fields(SCHEMES[name]) if field.name != "overrides")
