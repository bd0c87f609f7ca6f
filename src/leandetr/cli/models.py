"""`leandetr models`."""

from __future__ import annotations

from typing import Annotated

import typer

from leandetr.cli.main import app, out_console
from leandetr.terminal import plain_table


@app.command()
def models(
    describe: Annotated[str | None, typer.Option(help="One of the names: its size and its cost.")] = None,
) -> None:
    """What can be named with --model and --student, and torchvision's detectors for --teacher.

    Example: `leandetr models --describe rt_detr_v2`
    """
    from leandetr.detectors.names import MODELS, TORCHVISION, missing

    if describe:
        from leandetr.detectors.describe import describe as described

        found = described(describe)
        height, width = found.image_size
        out_console.print(f"{found.name}: {found.what}\nbackbone {found.backbone}")
        out_console.print(
            f"{found.parameters / 1e6:.1f} M parameters, {found.multiply_adds / 1e9:.1f} G multiply-adds at {height} x {width}"
        )
        out_console.print(f"sizes: multiples of {found.size_divisor}\n{found.source}")
        return
    table = plain_table("name", "backbone", "what it is")
    for name, model in MODELS.items():
        absent = " (not in the installed transformers)" if missing(name) else ""
        table.add_row(name, model.backbone, model.description + absent)
    out_console.print(table)
    out_console.print("torchvision's, for --teacher alone, as NAME or NAME:WEIGHTS:")
    for name in TORCHVISION:
        out_console.print(f"  {name}")
