"""`leandetr quantize`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from leandetr.cli.main import app, out_console
from leandetr.cli.options import (
    BothSplits,
    Device,
    Out,
    Schedule,
    changed,
    nested,
    numbers,
    read_settings,
    take_device,
    with_groups,
)
from leandetr.errors import UserError


@dataclass
class LowBitSchedule(Schedule):
    """How the scheme low-bit is trained; shorter and slower than a float training."""

    epochs: Annotated[int, typer.Option(help="low-bit: passes over the training images, in each stage.", min=1)] = 12
    lr: Annotated[float, typer.Option("--lr", help="low-bit: peak learning rate.")] = 1e-4


@dataclass
class Lessons:
    """What the training of the scheme low-bit learns from beside its data, and in which stages."""

    train: Annotated[bool, typer.Option(help="low-bit: train, or choose grids and rounding by unlabelled images.")] = True
    teacher: Annotated[str | None, typer.Option(help="low-bit: as in distill; the float detector itself can be it.")] = None
    method: Annotated[str | None, typer.Option(help="low-bit: method, or several joined by commas; drd by default.")] = None
    weight: Annotated[list[str] | None, typer.Option(help="TERM=WEIGHT in place of the method's own; repeatable.")] = None
    option: Annotated[list[str] | None, typer.Option(help="TERM.OPTION=VALUE of a term; repeatable.")] = None
    stages: Annotated[int, typer.Option(help="low-bit: 2 quantizes the backbone first.", min=1, max=2)] = 1
    stage_one: Annotated[Path | None, typer.Option(help="low-bit: the stage-1 folder of another training.")] = None

    def low_bit(self, schedule: Schedule, settings: dict[str, Any]) -> Any:
        """These as a `LowBitTraining`."""
        from leandetr.distillation.spec import Teaching
        from leandetr.verbs import LowBitTraining

        weights, options, teaching = numbers(read_settings(self.weight)), nested(read_settings(self.option)), None
        if self.teacher is not None:
            teaching = Teaching(teacher=self.teacher, method=self.method or "drd", weights=weights, options=options)
        elif self.method or weights or options:
            raise UserError("--method, --weight and --option say how to learn from a teacher: name it with --teacher")
        training = schedule.training(settings)
        return LowBitTraining(training=training, teaching=teaching, stages=self.stages, stage_one=self.stage_one)


@dataclass
class Limits:
    """Of the scheme static: integers or float layer by layer, judged on training images that calibration did not see."""

    max_ap_drop: Annotated[float | None, typer.Option(help="static: at most so much AP lost; 0.005 is half a point.")] = None
    target_latency_ms: Annotated[
        float | None, typer.Option(help="static, with --max-ap-drop: milliseconds a photograph to get to.")
    ] = None
    engine: Annotated[
        str, typer.Option(help="static, with --max-ap-drop: whose operator times decide, onnxruntime or openvino.")
    ] = "onnxruntime"
    held_out: Annotated[int, typer.Option(help="static, with --max-ap-drop: images that judge.", min=1)] = 128

    def budget(self, scheme: str) -> Any:
        """These as a `Budget`, None without one."""
        from leandetr.deployment.budget import Budget

        if self.max_ap_drop is None:
            if given := changed(self):
                raise UserError(f"{given[0]}: say what may be lost with --max-ap-drop, or leave it out")
            return None
        if scheme != "static":
            raise UserError(f"--max-ap-drop: the search is over layers on calibrated grids, not {scheme}; give --scheme static")
        return Budget(self.max_ap_drop, self.target_latency_ms, self.engine, self.held_out)


@app.command()
@with_groups
def quantize(
    model: Annotated[str, typer.Argument(help="Saved detector.")],
    scheme: Annotated[str, typer.Option(help="weight-only, dynamic, static, smoothquant, unified or low-bit.")],
    out: Out,
    data: BothSplits,
    schedule: LowBitSchedule,
    lessons: Lessons,
    limits: Limits,
    bits: Annotated[str | None, typer.Option(help="2 to 8 of a weight (weight-only), or as 4-4-8 (low-bit).")] = None,
    group_size: Annotated[int | None, typer.Option(help="Weights that share a scale, 32, 64 or 128, for weight-only.")] = None,
    calibration: Annotated[
        int | None,
        typer.Option(
            help="Training images to choose grids and round with; by default 128, below 8 bits 512, or all there are.", min=1
        ),
    ] = None,
    device: Device = "auto",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="OPTION=VALUE of the scheme, or training.KEY=VALUE of the schedule; repeatable."),
    ] = None,
) -> None:
    """Store and compute in integers.

    With `--scheme static --max-ap-drop 0.005 --engine openvino` only as many layers as keep to the budget, those first that
    gain most time on the engine.

    Example: `leandetr quantize runs/student --data DATA --scheme static --calibration 128 --out runs/student-static`;
    `leandetr quantize runs/student --data DATA --scheme weight-only --bits 4 --out runs/student-int4`; and,
    trained on its grids, `leandetr quantize runs/student --data DATA --scheme low-bit --bits 4-4-8 --teacher runs/student
    --out runs/student-4-4-8`
    """
    take_device(device)
    from leandetr import verbs
    from leandetr.quantization.config import Static, scheme_config
    from leandetr.quantization.theoretical_cost import theoretical_cost
    from leandetr.report.columns import SLOWER
    from leandetr.report.rows import surely_slower

    named = [f"{name}={value}" for name, value in (("bits", bits), ("group_size", group_size)) if value is not None]
    settings = read_settings(named + (set_ or []))
    options = {key: value for key, value in settings.items() if not key.startswith("training.")}
    trained = scheme == "low-bit" and lessons.train
    if not trained and (given := [*changed(schedule), *changed(lessons)]) and given != ["--train"]:
        raise UserError(f"{given[-1]}: {scheme} is not trained here; leave it out, or choose low-bit with --train")
    low_bit = lessons.low_bit(schedule, settings) if trained else None
    source = data.source() if data.given() else {}
    budget, config = limits.budget(scheme), scheme_config(scheme, **options)
    if budget is not None and isinstance(config, Static):
        detector, found = verbs.quantize_within(model, source, config, out, budget, calibration)
        out_console.print(detector.config.quantization_config.summary())
        out_console.print(
            f"AP {found['ap']:.4f} against {found['float_ap']:.4f} on {found['images']} training images, a drop of "
            f"{found['drop']:.4f} of {found['max_ap_drop']:g} allowed ({found['evaluations']} measurements); "
            f"{found['latency_ms']:.1f} ms against {found['float_latency_ms']:.1f} on {found['engine']}, "
            f"{found['speedup']:.2f} [{found['speedup_low']:.2f}, {found['speedup_high']:.2f}]"
            f"{f', {SLOWER}' if surely_slower(found) else ''}"
        )
        return
    detector = verbs.quantize(model, source, config, out, calibration, low_bit)
    out_console.print(detector.config.quantization_config.summary())
    out_console.print(str(theoretical_cost(detector)))
