"""Recipes from YAML files. Unknown keys are refused with the nearest known one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from leandetr.checked import sentence
from leandetr.detectors.spec import NewDetector
from leandetr.errors import UserError
from leandetr.files import parse_yaml
from leandetr.recipe.goal import GoalRecipe
from leandetr.recipe.recipe import Recipe, merge
from leandetr.training.config import Training


def read_recipe(
    path: Path,
    changes: dict[str, Any] | None = None,
    data: Path | None = None,
    teacher: str | Path | None = None,
    student: str | Path | None = None,
) -> Recipe | GoalRecipe:
    """Read a YAML file, one with a `goal` as a GoalRecipe; `changes` sets values by dotted name ("student.training.epochs": 3).
    Relative folders in it are relative to the current directory.

    data, teacher, student: a folder and models, by short name or as checkpoints, in place of the recipe's own, whose schedules
    they are trained with; a checkpoint in place of one that is taken as it is, is too.

    `extends: other.yaml` (or a list of files, each over those before it) takes what those files say, beside the file that names
    them, and puts the file's own keys over it: mappings are merged, anything else is replaced.

    Raises:
        UserError: a file cannot be read, is no YAML mapping, or has a key or value that is not understood (names it).
    """
    values = _read(Path(path), ())
    if data is not None:
        values["data"] = {"folder": str(data)}
    for role, name in {"teacher": teacher, "student": student}.items():
        if name is not None:
            new, own = NewDetector.named(name), values.get(role) or {}
            of: dict[str, Any] = {
                "model": new.model,
                "checkpoint": None if new.checkpoint is None else str(new.checkpoint),
            }
            if own.get("checkpoint") is None or "training" in own:
                of["training"] = {}
            values[role] = merge(own, of)
    for name, value in (changes or {}).items():
        _set(values, name.split("."), value, name)
    return parse_recipe(values, str(path))


def _read(path: Path, readers: tuple[Path, ...]) -> dict[str, Any]:
    """A file over those it extends; `readers` are the files that extend it."""
    if path.resolve() in readers:
        raise UserError(f"{path} extends itself; take it out of its own extends")
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read the recipe {path}: {error.strerror}; give the path of a YAML file") from error
    except ValueError as error:
        raise UserError(f"{path} is not text in UTF-8; save it as such") from error
    try:
        values = parse_yaml(text)
    except ValueError as error:
        raise UserError(f"{path} is not YAML ({error}); mend it") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} is no recipe: it must be a mapping with data, teacher and student")
    extended = values.pop("extends", [])
    extended = [extended] if isinstance(extended, str) else extended
    if not (isinstance(extended, list) and all(isinstance(base, str) for base in extended)):
        raise UserError(f"{path}: extends: {extended!r} is no file; name one, or a list of them")
    found: dict[str, Any] = {}
    for base in extended:
        found = merge(found, _read(path.parent / base, (*readers, path.resolve())))
    return merge(found, values)


def parse_recipe(values: dict[str, Any], source: str) -> Recipe | GoalRecipe:
    """Raises UserError for a key or value of a recipe that is not understood; `source` names it in the sentence."""
    kind: type[Recipe] | type[GoalRecipe] = GoalRecipe if "goal" in values else Recipe
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise sentence(error, source, kind) from error


def parse_training(values: dict[str, Any], source: str) -> Training:
    """Raises UserError for a key or value of the schedule that is not understood."""
    try:
        return Training.model_validate(values)
    except ValidationError as error:
        raise sentence(error, source, Training) from error


def _set(values: dict[str, Any], path: list[str], value: Any, name: str) -> None:
    for key in path[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise UserError(f"--set {name}: {key} is a value, not a section; name one of the recipe's keys")
    values[path[-1]] = value
