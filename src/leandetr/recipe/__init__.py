"""A recipe: everything a `compress` run does, read from YAML."""

from leandetr.recipe.goal import Goal, GoalRecipe
from leandetr.recipe.parts import Benchmark, Common, Distillation, Model, Pretraining, Quantization
from leandetr.recipe.reading import parse_recipe, parse_training, read_recipe
from leandetr.recipe.recipe import Recipe, Variant

__all__ = [
    "Benchmark",
    "Common",
    "Distillation",
    "Goal",
    "GoalRecipe",
    "Model",
    "Pretraining",
    "Quantization",
    "Recipe",
    "Variant",
    "parse_recipe",
    "parse_training",
    "read_recipe",
]
