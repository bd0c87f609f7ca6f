"""`leandetr quantize`."""

from __future__ import annotations

from typing import Annotated

import typer

from leandetr.cli.main import app, out_console
from leandetr.cli.options import OneSplit, Out, read_settings, with_groups


@app.command()
@with_groups
def quantize(
    model: Annotated[str, typer.Argument(help="Saved detector.")],
    scheme: Annotated[str, typer.Option(help="weight-only, dynamic or static.")],
    out: Out,
    data: OneSplit,
    calibration: Annotated[int | None, typer.Option(help="Training images for static grids.", min=1)] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="OPTION=VALUE of the scheme; repeatable.")] = None,
) -> None:
    """Store and compute in integers.

    Example: `leandetr quantize runs/student --data DATA --scheme static --calibration 128 --out runs/student-static`
    """
    from leandetr import verbs

    detector = verbs.quantize(model, data.source() if data.given() else {}, scheme, out, calibration, read_settings(set_))
    out_console.print(detector.config.quantization_config.summary())
