"""`leandetr trim`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from leandetr.cli.main import app, err_console, out_console
from leandetr.cli.options import BothSplits, Device, take_device, with_groups
from leandetr.terminal import plain_table


@app.command()
@with_groups
def trim(
    model: Annotated[str, typer.Argument(help="Saved float detector.")],
    data: BothSplits,
    out: Annotated[Path, typer.Option(help="Folder for the trimmed detector, frontier.json and frontier.png.")],
    max_ap_drop: Annotated[
        float | None, typer.Option(help="At most so much AP lost; 0.005, half a point, where no goal is given.")
    ] = None,
    target_latency_ms: Annotated[
        float | None, typer.Option(help="In its place: milliseconds a photograph to get to, at the best AP.")
    ] = None,
    engine: Annotated[
        str, typer.Option(help="Whose latency counts: pytorch, onnxruntime, openvino, executorch or litert.")
    ] = "onnxruntime",
    held_out: Annotated[int, typer.Option(help="Photographs of val that AP is measured on.", min=1)] = 256,
    device: Device = "auto",
) -> None:
    """Cut a trained detector to fewer decoder layers, queries and pixels, without training.

    All three are measured together: the AP of every combination on photographs of val, the latency of some on the engine, and
    of the others between those. Photographs that chose are not to report by.

    Example: `leandetr trim runs/student --data DATA --max-ap-drop 0.005 --engine openvino --out runs/student-trimmed`
    """
    take_device(device)
    from leandetr import verbs
    from leandetr.trimming import TrimGoal

    goal = TrimGoal(max_ap_drop=max_ap_drop, target_latency_ms=target_latency_ms, engine=engine, held_out=held_out)
    _, found = verbs.trim(model, data.source(), out, goal)
    for sentence in found["left_out"]:
        err_console.print(f"left out: {sentence}", soft_wrap=True)
    out_console.print(frontier_table(found))
    out_console.print(in_words(found), soft_wrap=True)
    out_console.print(str(out / "frontier.png"))


def frontier_table(found: dict[str, Any]) -> Table:
    """The frontier and the untrimmed detector, the slowest first."""
    from leandetr.structures import size_in_words

    full, chosen = found["full"], found["chosen"]
    titles = ("layers", "queries", "size", "AP", "drop", "ms", "speed-up")
    table = plain_table(*titles, "", numbers=titles)
    rows = [full, *(point for point in found["frontier"] if point != full)]
    for point in rows + ([] if chosen in rows else [chosen]):
        marks = [mark for mark, one in (("untrimmed", full), ("chosen", chosen)) if point == one]
        table.add_row(
            str(point["layers"]),
            str(point["queries"]),
            size_in_words(point["size"]),
            f"{point['ap']:.4f}",
            f"{full['ap'] - point['ap']:.4f}",
            f"{'' if point['measured'] else 'about '}{point['latency_ms']:.2f}",
            f"{full['latency_ms'] / point['latency_ms']:.2f}",
            ", ".join(marks),
        )
    return table


def in_words(found: dict[str, Any]) -> str:
    """What a trimming found, as it stands in `frontier.json`, in a sentence."""
    full, chosen = found["full"], found["chosen"]
    return (
        f"AP {chosen['ap']:.4f} against {full['ap']:.4f} on {found['images']} photographs of val; "
        f"{chosen['latency_ms']:.2f} ms against {full['latency_ms']:.2f} on {found['engine']}, "
        f"{found['speedup']:.2f} times as fast [{found['speedup_low']:.2f}, {found['speedup_high']:.2f}]"
    )
