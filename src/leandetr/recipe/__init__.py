"""A recipe: everything a `compress` run does, read from YAML.

A `Recipe` takes one student to int8 and measures what each step cost. A `Study` (a file with `variants`) trains many variants
of a student with several seeds and compares their accuracy.
"""

from leandetr.recipe.parts import Benchmark, Distillation, Model, Pretraining, Quantization, Recipe
from leandetr.recipe.reading import parse_recipe, parse_training, read_recipe
from leandetr.recipe.study import Study, Variant

__all__ = [
    "Benchmark",
    "Distillation",
    "Model",
    "Pretraining",
    "Quantization",
    "Recipe",
    "Study",
    "Variant",
    "parse_recipe",
    "parse_training",
    "read_recipe",
]
