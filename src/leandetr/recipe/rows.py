"""The rows of a recipe's table, before there is anything in them: which there will be, and what each is held against."""

from __future__ import annotations

from typing import NamedTuple

from leandetr.detectors.teachers import names_torchvision
from leandetr.distillation.average import names_average
from leandetr.distillation.vision import names_vision_model
from leandetr.recipe.parts import Model, Quantization
from leandetr.recipe.recipe import TEACHER, Recipe


class Plan(NamedTuple):
    """A row: the seeds that it has, the row that its accuracy is held against (None: those held against themselves, and
    teachers), and the row that its latency is."""

    seeds: list[int]
    against: str | None
    float_row: str


def planned_rows(recipe: Recipe) -> dict[str, Plan]:
    """The table's rows by name: teachers, then the variants, each followed by its trimmed and quantized ones."""
    seeds, teachers = recipe.all_seeds(), teachers_of(recipe)[0]
    rows = {name: Plan(seeds[:1], None, name) for name, model in teachers.items() if not from_outside(model)}
    variants = recipe.compared()
    there = {*rows, *(variant.name for variant in variants)}
    for variant in variants:
        against = variant.against or variants[0].name
        rows[variant.name] = Plan(seeds, against if against in there - {variant.name} else None, variant.name)
        rows |= {row: Plan(seeds, variant.name, variant.name) for row in (*variant.trimmed(), *variant.quantized())}
    return rows


def teachers_of(recipe: Recipe) -> tuple[dict[str, Model], dict[str, str]]:
    """The teachers by name, equal ones once, and the name of each distilled variant's teacher."""
    teachers: dict[str, Model] = {}
    of_variant: dict[str, str] = {}
    for variant in recipe.compared():
        if variant.distillation is not None and variant.teacher is not None:
            equal = (name for name, model in teachers.items() if model == variant.teacher)
            name = next(equal, TEACHER if variant.teacher == recipe.teacher else f"{TEACHER}-{variant.name}")
            teachers[name], of_variant[variant.name] = variant.teacher, name
    quantizations = [quantization for variant in recipe.compared() for quantization in variant.quantization]
    if recipe.teacher is not None and any(learns_from_shared(quantization, recipe) for quantization in quantizations):
        teachers[TEACHER] = recipe.teacher
    return teachers, of_variant


def learns_from_shared(quantization: Quantization, recipe: Recipe) -> bool:
    """Whether a low-bit training has the recipe's teacher."""
    return quantization.distillation is not None and quantization.teacher is None and recipe.teacher is not None


def from_outside(model: Model) -> bool:
    """Whether a teacher is a JSON of detections, one of torchvision's detectors, a vision model or the student's own average:
    such cannot be a row of a table."""
    source = str(model.checkpoint)
    return source.endswith(".json") or names_torchvision(source) or names_average(source) or names_vision_model(source)
