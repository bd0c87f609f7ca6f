"""Videos and cameras read a frame at a time, and videos written so, by PyAV."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from leandetr.errors import UserError
from leandetr.files import writing

logger = logging.getLogger(__name__)

#: how FFmpeg calls the cameras of a system, by `sys.platform`
CAMERAS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}")}
USUAL_RATE = Fraction(30)  # frames a second, where a file does not say


class Frame(NamedTuple):
    """number: from 0. seconds: from the first frame. ticks: the same in units of the video's `tick`. pixels: (H, W, 3) uint8,
    RGB, upright."""

    number: int
    seconds: float
    ticks: int
    pixels: NDArray[np.uint8]


class Video:
    """An open video or camera; iterating gives its frames one by one. Made by `open_video`.

    Attributes:
        name: of the file or camera.
        rate: frames a second.
        tick: seconds, in whose multiples frames lie.
        frames: how many there are, as the file says; None where it does not.
    """

    def __init__(self, container: Any, name: str, live: bool) -> None:
        (self._stream, *_) = container.streams.video
        self._container, self.name, self.live = container, name, live
        self._stream.thread_type = "AUTO"
        self.rate: Fraction = self._stream.average_rate or self._stream.guessed_rate or USUAL_RATE
        self.tick: Fraction = self._stream.time_base or 1 / self.rate
        known = self._stream.frames or round(float((self._stream.duration or 0) * self.tick * self.rate))
        self.frames: int | None = known or None

    def __iter__(self) -> Iterator[Frame]:
        """A damaged rest is left out with a warning. Raises UserError where there is no frame at all."""
        step = max(1, round(1 / (self.rate * self.tick)))
        number, first, ticks = 0, None, -step
        try:
            for frame in self._container.decode(self._stream):
                if frame.pts is None:
                    ticks += step
                else:
                    first = frame.pts if first is None else first
                    ticks = max(ticks + 1, frame.pts - first)
                ticks = max(0, ticks)
                pixels = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)
                yield Frame(number, float(ticks * self.tick), ticks, np.ascontiguousarray(pixels))
                number += 1
        except import_av().FFmpegError as error:
            if number:
                logger.warning(
                    "%s cannot be read beyond frame %d (%s): the rest is left out", self.name, number - 1, error.strerror
                )
        if not number:
            raise UserError(f"{self.name} holds no frame that can be read; replace the file or leave it out")


@contextmanager
def open_video(name: str) -> Iterator[Video]:
    """A file, or a camera ("camera:0").

    Raises:
        UserError: PyAV is not installed, no such file or camera, or no video in it.
    """
    av, live = import_av(), name.startswith("camera:")
    if live and sys.platform not in CAMERAS:
        raise UserError(f"{name}: cameras are read on {' and '.join(CAMERAS)} alone; record a file and name that")
    kind, place = CAMERAS[sys.platform] if live else (None, "{}")
    try:
        container = av.open(place.format(name.removeprefix("camera:")) if live else name, format=kind)
    except (av.FFmpegError, OSError) as error:
        mend = "connect it or name another" if live else "replace the file or leave it out"
        raise UserError(f"{name} cannot be opened as a video ({error.strerror}); {mend}") from error
    with container:
        if not container.streams.video:
            raise UserError(f"{name} holds no pictures; leave it out")
        yield Video(container, name, live)


@contextmanager
def write_video(path: Path, video: Video) -> Iterator[Callable[[Frame, NDArray[np.uint8]], None]]:
    """`put(frame, pixels)`, which adds a picture (H, W, 3) at the time of a frame of `video`; `path`, an .mp4, gets its name
    when the block ends well. The size is that of the first picture; sound is not kept."""
    av = import_av()
    streams: list[Any] = []  # one, once the size is known
    h264 = "libx264" in av.codecs_available
    with writing(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:

        def put(frame: Frame, pixels: NDArray[np.uint8]) -> None:
            if not streams:
                stream = container.add_stream("libx264" if h264 else "mpeg4", rate=video.rate)
                stream.height, stream.width = pixels.shape[:2]
                # half the colour resolution, which every player shows, needs even sides
                stream.pix_fmt = "yuv444p" if h264 and (stream.height % 2 or stream.width % 2) else "yuv420p"
                stream.codec_context.time_base = video.tick if h264 else 1 / video.rate
                streams.append(stream)
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            picture.pts, picture.time_base = (frame.ticks, video.tick) if h264 else (frame.number, 1 / video.rate)
            container.mux(streams[0].encode(picture))

        yield put
        for stream in streams:
            container.mux(stream.encode())


def import_av() -> ModuleType:
    """Raises UserError where the package is not installed."""
    try:
        import av
    except ImportError as error:
        raise UserError("videos and cameras need the package av; install it with: pip install 'leandetr[video]'") from error
    return av
