"""`serve`: a finished detector behind HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from leandetr.cli.main import app, err_console, out_console
from leandetr.cli.options import Device, Engine, Queries, Threads, take_device

if TYPE_CHECKING:
    from leandetr.deployment.runtime import Runtime

LOCAL = ("127.0.0.1", "::1", "localhost")


@app.command()
def serve(
    model: Annotated[str, typer.Argument(help="Saved detector, hub id, published .pth, .onnx, .xml, or torchvision's NAME.")],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is all of this machine, without a password.")] = (
        LOCAL[0]
    ),
    port: Annotated[int, typer.Option(help="Port to listen on; 0 is any that is free.", min=0, max=65535)] = 8000,
    threshold: Annotated[float, typer.Option(help="Least score of a box, where a request does not say.", min=0, max=1)] = 0.3,
    max_megabytes: Annotated[float, typer.Option(help="Of a request (10^6 bytes).")] = 32,
    max_megapixels: Annotated[float, typer.Option(help="Of a photograph (10^6 pixels), at most 179.")] = 50,
    max_requests: Annotated[int, typer.Option(help="That are answered or wait at once; the next gets status 503.")] = 128,
    max_batch: Annotated[int, typer.Option(help="Photographs in a request.")] = 32,
    engine: Engine = None,
    queries: Queries = None,
    threads: Threads = None,
    device: Device = "auto",
) -> None:
    """Answer photographs that are sent by HTTP, with JSON in COCO's or Roboflow's field names; / is a page to drop them on.

    Example: `leandetr serve student.onnx --port 8000 --threads 2`
    """
    take_device(device)
    from leandetr import verbs
    from leandetr.serving.limits import ServerLimits

    limits = ServerLimits(megabytes=max_megabytes, megapixels=max_megapixels, requests=max_requests, batch=max_batch)

    def ready(runtime: Runtime, address: str) -> None:
        out_console.print(f"{runtime.artifact} on {runtime.name}: {address} (Ctrl-C stops it)", soft_wrap=True, highlight=False)
        if host not in LOCAL:
            err_console.print(f"whoever reaches {host} is answered: there is no password", soft_wrap=True)

    verbs.serve(model, host, port, threshold, engine, queries, threads, limits, ready)
    out_console.print("stopped")
