"""The files of a request, read within its place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import BytesIO

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message

from leandetr.serving.limits import ARRIVAL, Refused, ServerLimits
from leandetr.serving.photographs import Sent
from leandetr.serving.pipeline import Pipeline

FIELDS = 8  # of a form that are no files: more than anybody sends by mistake


@asynccontextmanager
async def uploads(request: Request, pipeline: Pipeline, most: int) -> AsyncIterator[list[Sent]]:
    """The files that a request brings, at least one: its whole body, or all files of its form (multipart/form-data). It has its
    place until the block ends.

    Raises:
        Refused: 413 for more bytes or files than are taken, 503 where there is no place for it, 408 where it does not arrive,
            400 for a form that is broken, has other fields or no file, and for no bytes.
    """
    limits = pipeline.limits
    with pipeline.place(_announced(request, limits)) as place:
        counted = Counted(request, limits)
        try:
            sent = await _arrived(counted.request, limits)
            place.size = counted.bytes
            if len(sent) > most:
                mend = "send several to /detect/batch" if most == 1 else "send them in several requests"
                raise Refused(413, f"the form holds more than {most} photograph{'s' if most > 1 else ''}; {mend}")
            yield sent
        finally:
            await counted.request.close()


class Counted:
    """A request whose body ends with an error where it is longer than announced or allowed. bytes: that have come."""

    def __init__(self, request: Request, limits: ServerLimits) -> None:
        self.request, self.bytes = Request(request.scope, self._receive), 0
        self._whole, self._limits = request.receive, limits

    async def _receive(self) -> Message:
        message = await self._whole()
        self.bytes += len(message.get("body", b""))
        if self.bytes > self._limits.body:
            raise _too_large(self._limits)
        return message


async def _arrived(request: Request, limits: ServerLimits) -> list[Sent]:
    try:
        async with asyncio.timeout(ARRIVAL):
            return await _files(request, limits)
    except TimeoutError as error:
        raise Refused(408, f"the request did not arrive within {ARRIVAL} seconds; send it again") from error


async def _files(request: Request, limits: ServerLimits) -> list[Sent]:
    kind, _, _ = request.headers.get("content-type", "").partition(";")
    if kind.strip().lower() != "multipart/form-data":
        content = BytesIO(await request.body())
        if not content.getbuffer().nbytes:
            raise Refused(400, "the request is empty; send a photograph, as curl --data-binary @photo.jpg does")
        return [Sent(content, "the photograph")]
    try:
        form = await request.form(max_files=limits.batch + 1, max_fields=FIELDS)
    except HTTPException as error:
        status = 413 if "Too many" in error.detail else 400
        raise Refused(status, f"the form cannot be taken ({error.detail.rstrip('.')}); mend it and send it again") from error
    sent = []
    for name, value in form.multi_items():
        if not isinstance(value, UploadFile):
            raise Refused(400, f"the form's field {name!r} is no file; settings stand in the address, as ?threshold=0.5")
        sent.append(Sent(value.file, value.filename or "the photograph"))
    if not sent:
        raise Refused(400, "the form holds no file; add one, as curl --form file=@photo.jpg does")
    return sent


def _announced(request: Request, limits: ServerLimits) -> int:
    """The bytes that a request says it has; where it does not say, as many as are allowed."""
    length = request.headers.get("content-length", "")
    size = int(length) if length.isdecimal() else limits.body
    if size > limits.body:
        raise _too_large(limits)
    return size


def _too_large(limits: ServerLimits) -> Refused:
    return Refused(413, f"the request has more than {limits.megabytes:g} MB; send a smaller photograph, or fewer at once")
