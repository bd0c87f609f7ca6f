"""What a server takes, and how it says that it does not take something."""

from __future__ import annotations

from pydantic import Field

from leandetr.checked import Checked

#: so many of the largest requests are held at once
HELD = 8
#: seconds in which a request must have arrived whole
ARRIVAL = 60


class ServerLimits(Checked):
    """What a server takes; together they bound its memory.

    Attributes:
        megabytes: of one request (10^6 bytes). All requests that are answered or wait hold at most `HELD` times as many.
        megapixels: of one photograph (10^6 pixels), which is refused by its head, before it is decoded; Pillow itself refuses
            more than 179.
        requests: that are answered or wait at once; the next is told to come again.
        batch: photographs in one request.
    """

    megabytes: float = Field(32, gt=0)
    megapixels: float = Field(50, gt=0, le=179)
    requests: int = Field(128, ge=1)
    batch: int = Field(32, ge=1)

    @property
    def body(self) -> int:
        """Bytes of one request."""
        return round(self.megabytes * 1e6)


class Refused(Exception):
    """What is not answered: the HTTP status, and one sentence that says why and how to mend it.

    400: broken, or no photograph at all. 408: it did not arrive. 413: too large. 415: no image. 503: too much at once.
    """

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
