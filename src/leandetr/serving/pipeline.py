"""From files to detections, one after the other: a photograph is decoded while the one before it is looked at."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from leandetr.deployment.runtime import Runtime
from leandetr.serving.answers import Found
from leandetr.serving.limits import HELD, Refused, ServerLimits
from leandetr.serving.photographs import Opened, Sent, open_photograph

logger = logging.getLogger(__name__)


class Place:
    """A request's place among those that are answered or wait. size: bytes that are kept for it."""

    def __init__(self, size: int) -> None:
        self.size = size


class Pipeline:
    """What all requests share: the detector, and places for as much as the limits let be there at once.

    At most two photographs are decoded at a time, whatever waits. Everything but the two threads is one event loop's.
    """

    def __init__(self, runtime: Runtime, limits: ServerLimits) -> None:
        self.runtime, self.limits = runtime, limits
        self.places: set[Place] = set()
        self._decoder, self._engine = asyncio.Lock(), asyncio.Lock()
        self._threads = ThreadPoolExecutor(2, "photograph")

    @contextmanager
    def place(self, size: int) -> Iterator[Place]:
        """A place for a request of so many bytes, before they are read. Raises Refused (503) where there is none."""
        held = sum(place.size for place in self.places)
        if len(self.places) >= self.limits.requests or held + size > HELD * self.limits.body:
            raise Refused(503, f"{len(self.places)} requests are being answered already; send it again in a second")
        place = Place(size)
        self.places.add(place)
        try:
            yield place
        finally:
            self.places.remove(place)

    async def detect(self, sent: Sent, threshold: float, gone: Callable[[], Awaitable[bool]]) -> Found | None:
        """What a photograph shows, in its turn; None where, by then, `gone` says that nobody waits for it any more.

        Raises Refused for a file that is not answered, and where the engine fails (500).
        """
        loop = asyncio.get_running_loop()
        async with self._decoder:
            if await gone():
                return None
            start = time.perf_counter()
            opened = await loop.run_in_executor(self._threads, open_photograph, sent, self.limits.megapixels)
            decoding = time.perf_counter() - start
            await self._engine.acquire()  # only then is the next one decoded
        try:
            return await loop.run_in_executor(self._threads, self._look, opened, threshold, decoding)
        except Exception as error:  # of the engine; the next photograph may well be answered
            logger.exception("the detector failed on %s", sent.name)
            raise Refused(500, f"the detector failed on {sent.name}; the server's log says why") from error
        finally:
            self._engine.release()

    def _look(self, opened: Opened, threshold: float, decoding: float) -> Found:
        start = time.perf_counter()
        detections = self.runtime.predict(opened.image, threshold)
        seconds = decoding + time.perf_counter() - start
        return Found(detections, opened.image.width, opened.image.height, opened.several, seconds)
