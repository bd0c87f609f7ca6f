"""The server as an ASGI application: what is asked at which address, and every refusal as one sentence in JSON."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query
from fastapi.exceptions import RequestValidationError
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from leandetr.deployment.runtime import Runtime
from leandetr.drawing import COLOURS
from leandetr.errors import unknown
from leandetr.serving.answers import FORMS
from leandetr.serving.limits import Refused, ServerLimits
from leandetr.serving.photographs import Sent
from leandetr.serving.pipeline import Pipeline
from leandetr.serving.uploads import uploads

TEMPLATES = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined)
#: the page holds its own style and script, and nothing that it shows may load more
CONTENT = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src blob: data:; connect-src 'self'"


class Asked(BaseModel):
    """What stands behind the address: ?format=roboflow&threshold=0.5."""

    model_config = ConfigDict(extra="forbid")
    format: Literal["coco", "roboflow"] = "coco"
    threshold: float | None = Field(None, ge=0, le=1)


def application(runtime: Runtime, threshold: float, limits: ServerLimits) -> FastAPI:
    """GET / (a page to drop photographs on) and /health; POST /detect (one photograph) and /detect/batch (a form of several).

    threshold: least score of what is answered, where a request does not say. For any ASGI server, of which one process has one
    event loop and, of this application, one detector.
    """
    pipeline = Pipeline(runtime, limits)
    app = FastAPI(title="leandetr", docs_url=None, redoc_url=None)
    _add_refusals(app)

    async def answer(sent: Sent, asked: Asked, gone: Callable[[], Awaitable[bool]]) -> dict[str, Any]:
        found = await pipeline.detect(sent, threshold if asked.threshold is None else asked.threshold, gone)
        if found is None:
            raise ClientDisconnect
        return FORMS[asked.format](found, runtime.class_map)

    @app.post("/detect")
    async def detect(request: Request, asked: Annotated[Asked, Query()]) -> Response:
        async with uploads(request, pipeline, most=1) as (sent,):
            return JSONResponse(await answer(sent, asked, request.is_disconnected))

    @app.post("/detect/batch")
    async def detect_batch(request: Request, asked: Annotated[Asked, Query()]) -> Response:
        rows = []
        async with uploads(request, pipeline, most=limits.batch) as several:
            for sent in several:
                try:
                    row = await answer(sent, asked, request.is_disconnected)
                except Refused as refused:  # the others are answered all the same
                    row = {"error": str(refused), "status": refused.status}
                rows.append({"file": sent.name} | row)
        return JSONResponse(rows)

    @app.get("/health")
    async def health() -> Response:
        return JSONResponse(about(runtime, threshold, limits) | {"ready": True, "requests": len(pipeline.places)})

    shown = about(runtime, threshold, limits) | {"name": Path(runtime.artifact).name, "colours": COLOURS}
    page = TEMPLATES.get_template("page.html.j2").render(shown)

    @app.get("/")
    async def index() -> Response:
        return HTMLResponse(page, headers={"Content-Security-Policy": CONTENT, "X-Content-Type-Options": "nosniff"})

    return app


def about(runtime: Runtime, threshold: float, limits: ServerLimits) -> dict[str, Any]:
    """What is served: the file, its engine, classes and image size, and the limits."""
    preprocessing = runtime.preprocessing
    edges = {"shortest_edge": preprocessing.shortest_edge, "longest_edge": preprocessing.longest_edge}
    fixed = None if preprocessing.size is None else dict(zip(("height", "width"), preprocessing.size, strict=True))
    return {
        "model": runtime.artifact,
        "engine": runtime.name,
        "device": runtime.device.type,
        "scheme": runtime.metadata.scheme,
        "size_bytes": runtime.size_bytes,
        "image_size": fixed or edges,
        "classes": [
            {"id": number, "name": name}
            for number, name in zip(runtime.class_map.dataset_ids, runtime.class_map.names, strict=True)
        ],
        "threshold": threshold,
        "limits": limits.model_dump(),
    }


def _add_refusals(app: FastAPI) -> None:
    def refuse(status: int, sentence: str) -> Response:
        headers = {"Retry-After": "1"} if status == 503 else None
        return JSONResponse({"error": sentence}, status, headers)

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        return refuse(error.status, str(error))

    @app.exception_handler(RequestValidationError)
    async def misspelt(request: Request, error: RequestValidationError) -> Response:
        fault = error.errors()[0]
        name = str(fault["loc"][-1])
        if fault["type"] == "extra_forbidden":
            return refuse(400, str(unknown("parameter", name, Asked.model_fields)))
        return refuse(400, f"{name}: {fault['msg'][0].lower()}{fault['msg'][1:]}; mend that parameter of the address")

    @app.exception_handler(HTTPException)
    async def nowhere(request: Request, error: HTTPException) -> Response:
        known = "GET / and /health, POST /detect and /detect/batch"
        return refuse(error.status_code, f"{request.method} {request.url.path} is not answered here; known are {known}")

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=400)  # which nobody reads
