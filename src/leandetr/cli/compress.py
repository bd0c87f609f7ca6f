"""`leandetr compress`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from leandetr.cli.main import app, out_console
from leandetr.cli.options import Json, read_settings


@app.command()
def compress(
    recipe: Annotated[Path, typer.Argument(help="YAML file, see recipes/.")],
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/NAME of the recipe by default.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE of the recipe, by dotted name; repeatable.")
    ] = None,
    budget_minutes: Annotated[
        float | None, typer.Option(help="Of a study: stop after so long; the same command goes on.", min=0)
    ] = None,
    json: Json = None,
) -> None:
    """Teacher, student without and with it, quantized variants, exports, and one table of what each cost. Of a recipe with
    variants (a study), the accuracy of each with mean and spread over seeds.

    Example: `leandetr compress recipes/demo.yaml --out runs/demo --set student.training.epochs=5`
    """
    from leandetr.files import write_json
    from leandetr.pipeline import compress as run
    from leandetr.recipe import Study, read_recipe
    from leandetr.report import results_table, study_table

    out = out or Path("runs") / recipe.stem
    job = read_recipe(recipe, read_settings(set_))
    results = run(job, out, shlex.join(["leandetr", *sys.argv[1:]]), budget_minutes)
    if json:
        write_json(json, results)
    if isinstance(job, Study):
        out_console.print(study_table(results))
        out_console.print(results["left"] or "Everything is done.")
    else:
        out_console.print(results_table(results["rows"]))
    out_console.print(f"{out / 'report.html'}  {out / 'results.json'}")
