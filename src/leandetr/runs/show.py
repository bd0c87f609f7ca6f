"""What a run would do: its recipe as it is understood, its rows and its steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from leandetr.recipe import GoalRecipe, Model, Recipe, Variant
from leandetr.report.numbers import DASH, duration
from leandetr.runs.candidates import asked
from leandetr.runs.goal_run import ORDER, GoalRun
from leandetr.runs.ledger import Step
from leandetr.runs.run import Run
from leandetr.terminal import plain_table
from leandetr.training.config import Training


def resolved(recipe: Recipe | GoalRecipe) -> str:
    """The recipe as YAML, after `extends`, defaults and changes; its variants are written out."""
    values = recipe.model_dump(mode="json", exclude_none=True)
    if isinstance(recipe, GoalRecipe):
        return yaml.safe_dump(_unseeded(values | {"teacher": _model(recipe.teacher)}), sort_keys=False).rstrip()
    for role, model in {"teacher": recipe.teacher, "student": recipe.student}.items():
        if model is not None:
            values[role] = _model(model)
    for short in ("seed", "distillation", "trim", "quantization"):
        values.pop(short, None)
    values["seeds"] = recipe.all_seeds()
    values["variants"] = [_variant(variant) for variant in recipe.compared()]
    if (benchmark := recipe.measured_on()) is not None:
        values["benchmark"] = benchmark.model_dump(mode="json", exclude_none=True)
    return yaml.safe_dump(_unseeded(values), sort_keys=False).rstrip()


def plan_of(recipe: Recipe | GoalRecipe, out: Path) -> tuple[Table, Table, str]:
    """The rows and the steps of a run in `out`, and in words what is left and how long it will take; of a search, what it tries
    in which order, and the steps that are done. Nothing is written.

    Raises what the run would raise before its first step.
    """
    if isinstance(recipe, GoalRecipe):
        return _plan_of_search(recipe, out)
    run = Run(recipe, out)
    steps = run.planned()
    rows = plain_table("row", "seeds", "accuracy against", "latency against")
    for name, plan in run.table.plans.items():
        rows.add_row(name, ", ".join(map(str, plan.seeds)), plan.against or DASH, plan.float_row)
    return rows, _listed(steps), _left(steps)


def _plan_of_search(recipe: GoalRecipe, out: Path) -> tuple[Table, Table, str]:
    run = GoalRun(recipe, out)
    steps = run.planned()
    order = plain_table("tried", "what it is")
    for name, what in ORDER.items():
        order.add_row(name, what)
    if steps[-1].done:
        return order, _listed(steps), "Everything is done."
    goal = recipe.goal
    left = f"Looked for: {asked(goal)}, with at most {goal.trainings} trainings of {_length(recipe.training)}. "
    return (
        order,
        _listed(steps),
        f"{left}What comes after {steps[-1].name} depends on what is found; nothing more once it is met.",
    )


def _length(training: Training) -> str:
    return f"{training.epochs} epochs" if training.max_steps is None else f"{training.max_steps} steps"


def _listed(steps: Sequence[Step]) -> Table:
    listed = plain_table("step", "state", "time")
    for step in steps:
        time = DASH if step.seconds is None else f"{'' if step.done else 'about '}{duration(step.seconds)}"
        listed.add_row(step.name, "done" if step.done else "to do", time)
    return listed


def _variant(variant: Variant) -> dict[str, Any]:
    models = {"student": variant.student, "teacher": variant.teacher}
    written = {role: _model(model) for role, model in models.items() if model is not None}
    return variant.model_dump(mode="json", exclude_none=True) | written


def _model(model: Model) -> dict[str, Any]:
    """Without a schedule where it is taken as it is: with one it would be trained."""
    return model.model_dump(mode="json", exclude_none=True, exclude=None if model.is_trained else {"training"})


def _unseeded(values: Any) -> Any:
    """Without the seeds of trainings, which are the recipe's."""
    if isinstance(values, list):
        return [_unseeded(value) for value in values]
    if not isinstance(values, dict):
        return values
    if isinstance(training := values.get("training"), dict):
        values = values | {"training": {key: value for key, value in training.items() if key != "seed"}}
    return {key: _unseeded(value) for key, value in values.items()}


def _left(steps: list[Step]) -> str:
    left = [step for step in steps if not step.done]
    if not left:
        return "Everything is done."
    known = sum(step.seconds for step in left if step.seconds is not None)
    unknown = sorted({step.kind for step in left if step.seconds is None})
    parts = [f"{len(left)} of {len(steps)} steps are left"]
    if known:
        parts.append(f"about {duration(known)} going by those that are done")
    if unknown:
        parts.append(f"how long a step takes is not known yet for: {', '.join(unknown)}")
    return "; ".join(parts) + "."
