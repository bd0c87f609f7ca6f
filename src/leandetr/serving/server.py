"""One process that listens, and stops cleanly."""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import uvicorn

from leandetr.deployment.runtime import Runtime
from leandetr.errors import UserError
from leandetr.serving.app import application
from leandetr.serving.limits import ServerLimits

#: seconds that requests in work have, once it is told to stop
LAST = 30


def run_server(
    runtime: Runtime,
    host: str,
    port: int,
    threshold: float,
    limits: ServerLimits,
    ready: Callable[[str], None],
) -> None:
    """Answer until the process is sent SIGTERM or SIGINT; what was asked by then is answered first. For a main thread.

    ready: called with the address, once the detector has answered and connections are taken; port 0 is any that is free.

    Raises UserError where it cannot listen there.
    """
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # whoever sends a broken form is told so
    runtime.predict(np.zeros((64, 64, 3), dtype=np.uint8))  # the first call is the slowest, and would fail here if at all
    with _listening(host, port) as listener, _stopped_quietly():
        config = uvicorn.Config(
            application(runtime, threshold, limits),
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            ws="none",
            lifespan="off",
            timeout_graceful_shutdown=LAST,
        )
        name = f"[{host}]" if ":" in host else host
        ready(f"http://{name}:{listener.getsockname()[1]}")
        uvicorn.Server(config).run(sockets=[listener])


@contextmanager
def _stopped_quietly() -> Iterator[None]:
    """Uvicorn raises again the signal by which it was stopped; that it stopped is all that was wanted."""
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _listening(host: str, port: int) -> socket.socket:
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=1024)
        # Connections inherit it. Without, an answer's body waits 40 ms until its head has been acknowledged.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (while")[0]
        raise UserError(f"cannot listen on {host} port {port} ({reason}); name another --host or --port") from error
