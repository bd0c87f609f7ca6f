"""`leandetr compress`."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from leandetr.cli.main import app, out_console
from leandetr.cli.options import Json, read_settings, with_groups


@dataclass
class Start:
    """What a recipe is done to and with, in place of its own."""

    data: Annotated[Path | None, typer.Option("--data", help="In place of the recipe's: a data folder.")] = None
    teacher: Annotated[
        str | None, typer.Option(help="In place of the recipe's: a saved detector or hub id, trained as that one would be.")
    ] = None
    student: Annotated[str | None, typer.Option(help="The same of the student; or a name of `leandetr models`.")] = None


@app.command()
@with_groups
def compress(
    recipe: Annotated[Path, typer.Argument(help="YAML file, see recipes/.")],
    start: Start,
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/NAME of the recipe by default.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE of the recipe, by dotted name; repeatable.")
    ] = None,
    budget_minutes: Annotated[float | None, typer.Option(help="Stop after so long; the same command goes on.", min=0)] = None,
    jobs: Annotated[
        int, typer.Option(help="Variants trained side by side, on the GPUs in turn where there are any.", min=1)
    ] = 1,
    show: Annotated[bool, typer.Option("--show", help="Print the resolved recipe and the plan, and do nothing.")] = False,
    json: Json = None,
) -> None:
    """Teacher, student without and with it, quantized variants, exports, and one table of what each is worth and costs. With
    several seeds every row has its mean and spread. A recipe with a `goal` names a loss or a time, and gets the file for it.

    Example: `leandetr compress recipes/finetune.yaml --data DATA --teacher runs/large --student runs/small --out runs/mine`, or
    `leandetr compress recipes/goal.yaml --data DATA --teacher runs/large --out runs/best`
    """
    from leandetr.files import write_json
    from leandetr.recipe import read_recipe
    from leandetr.report import reported, results_table
    from leandetr.runs import compress as run
    from leandetr.runs.show import plan_of, resolved

    out = out or Path("runs") / recipe.stem
    job = read_recipe(recipe, read_settings(set_), **dataclasses.asdict(start))
    if show:
        out_console.print(resolved(job), highlight=False, soft_wrap=True)
        out_console.print(*plan_of(job, out), sep="\n")
        return
    results = run(job, out, shlex.join(["leandetr", *sys.argv[1:]]), budget_minutes, jobs)
    if json:
        write_json(json, results)
    out_console.print(results_table(results["rows"], results["epochs"]))
    if goal := results.get("goal"):
        out_console.print(*filter(None, [goal["sentence"], reported(goal)]), sep="\n", highlight=False, soft_wrap=True)
    out_console.print(results["left"] or "Everything is done.")
    out_console.print(f"{out / 'report.html'}  {out / 'results.json'}")
