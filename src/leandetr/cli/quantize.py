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
    bits: Annotated[str | None, typer.Option(help="2 to 8 of a weight (weight-only), or as 4-4-8 (low-bit).")] = None,
    group_size: Annotated[int | None, typer.Option(help="Weights that share a scale, 32, 64 or 128, for weight-only.")] = None,
    calibration: Annotated[int | None, typer.Option(help="Training images to choose grids and round with.", min=1)] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="OPTION=VALUE of the scheme; repeatable.")] = None,
) -> None:
    """Store and compute in integers.

    Example: `leandetr quantize runs/student --data DATA --scheme static --calibration 128 --out runs/student-static`, or
    `leandetr quantize runs/student --data DATA --scheme weight-only --bits 4 --calibration 64 --out runs/student-int4`
    """
    from leandetr import verbs

    named = [f"{name}={value}" for name, value in (("bits", bits), ("group_size", group_size)) if value is not None]
    options = read_settings(named + (set_ or []))
    detector = verbs.quantize(model, data.source() if data.given() else {}, scheme, out, calibration, options)
    out_console.print(detector.config.quantization_config.summary())
