"""`serve`: a finished detector behind HTTP."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from leandetr.deployment.runtime import Runtime
from leandetr.deployment.runtimes import open_runtime
from leandetr.errors import UserError
from leandetr.machine import chosen_device
from leandetr.serving.limits import ServerLimits

PACKAGES = ("fastapi", "uvicorn", "python_multipart")


def serve(  # noqa: PLR0913 - which detector answers on what, where, and how much
    model: str | Path,
    host: str = "127.0.0.1",
    port: int = 8000,
    threshold: float = 0.3,
    engine: str | None = None,
    queries: str | None = None,
    threads: int | None = None,
    limits: ServerLimits | None = None,
    ready: Callable[[Runtime, str], None] | None = None,
) -> None:
    """Answer photographs that are sent by HTTP with what a saved detector or exported file finds on them, until the process is
    told to stop (SIGTERM or SIGINT). Nobody is asked for a password: who reaches the address is answered.

    threshold: least score, where a request does not say. queries: as in `evaluate`. threads: of the engine; by default as many
    as PyTorch uses. ready: called with the open detector and the address, once there are answers.
    """
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise UserError(f"serving needs {' and '.join(missing)}; install what is missing with: pip install 'leandetr[serve]'")
    from leandetr.serving.server import run_server

    runtime = open_runtime(model, threads=threads, engine=engine, queries=queries, device=chosen_device())

    def say(address: str) -> None:
        if ready is not None:
            ready(runtime, address)

    run_server(runtime, host, port, threshold, limits or ServerLimits(), say)
