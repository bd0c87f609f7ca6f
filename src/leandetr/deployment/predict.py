"""Detections on images, folders, videos and cameras, by any runtime: pictures to look at and files to read."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from leandetr.data.images import has_frames, read_image
from leandetr.deployment.listing import Listing
from leandetr.deployment.runtime import Runtime
from leandetr.deployment.sources import Kind, Source, find_sources, result_places
from leandetr.deployment.video import open_video, write_video
from leandetr.drawing import above, draw
from leandetr.errors import UserError, unknown
from leandetr.files import writing
from leandetr.inputs import file_digest
from leandetr.processes import gathered, say, share
from leandetr.progress import counting
from leandetr.shards import Shards
from leandetr.structures import ClassMap, Detections

logger = logging.getLogger(__name__)

FORMATS = ("plain", "coco")


def predict_sources(  # noqa: PLR0913 - what is looked at, and what is kept of it
    runtime: Runtime,
    sources: Sequence[str | Path | int],
    out: Path,
    threshold: float = 0.3,
    form: str = "plain",
    annotations: Path | None = None,
    pictures: bool = True,
    made_from: Any = None,
) -> Path:
    """Detect, draw, and write `out`/predictions.json.

    The images are worked through in shards, which processes that were started together share and which stay where a run is
    killed: the same call goes on with the first one that is missing.

    Args:
        runtime: what predicts.
        sources: images, folders, patterns, videos and cameras, see `find_sources`.
        out: folder for the JSON and, with `pictures`, one drawn JPEG an image and one drawn .mp4 a video, of its size and frame
            rate, each under the path that it has below the folder in which it was found. A video's detections lie beside it,
            a line of JSON a frame: frame (from 0), time (in seconds), detections.
        threshold: of the score, for what is drawn and for the plain file; a COCO file holds every detection, as AP needs them.
        form: "plain" (a list with one entry an image: file, and its detections by class name, score and box (x0, y0, x1, y1) in
            pixels; or a video: file, number of frames, and the file of its lines), or "coco" (COCO's results format).
        annotations: COCO JSON whose image ids and category ids (matched by name) a COCO file uses; needed for it.
            Detections of classes that it does not have are left out, and boxes are in the frame of its sizes.
        made_from: what else the detections follow from: shards of other weights are made anew.

    Of an image with several frames (GIF, WebP, TIFF) the first is read, and that is said. Files of a folder or pattern that are
    no images are left out with a warning. A camera is read until it is interrupted; what it has shown is written then.

    Returns:
        The JSON's path.

    Raises:
        UserError: a named image that cannot be read, no images, an unknown format, an image that `annotations` does not list or
            lists twice, no class that they share with the runtime, or a drawing that would overwrite an image.
    """
    check_format(form, annotations)
    found = find_sources(sources, Path(out))
    images = [source for source in found if source.kind is Kind.IMAGE]
    places = result_places(found, Path(out)) if pictures else [Path(out) / source.place for source in found]
    if form == "coco" and len(images) < len(found):
        raise UserError(f"{found[-1].path} is a {found[-1].kind.value}, and the coco format numbers images; leave it out")
    numbers = annotations if form == "coco" else None
    listed = None if numbers is None else Listing(numbers, runtime.class_map)
    settings = [threshold, pictures, numbers and file_digest(numbers)]
    files = [(str(place), source.path.stat().st_size) for source, place in zip(images, places)]
    shards = Shards(Path(out), [made_from, settings, files], len(images))
    if shards.before:
        logger.warning("%s: %d of %d shards were there already", out, shards.before, len(shards.blocks))
    each = Each(runtime, threshold, listed, pictures)
    with counting("images", sum(len(shards.blocks[number]) for number in shards.mine)) as step:
        for number in shards.mine:
            rows = []
            for index in shards.blocks[number]:
                rows += each(images[index], places[index])
                step()
            shards.keep(number, rows, sum(len(row["detections"]) if listed is None else 1 for row in rows))
    if each.several:
        logger.warning("%d images have several frames, of which the first is read: %s", len(each.several), each.several[0])
    videos = share(list(zip(found[len(images) :], places[len(images) :])))
    own = [predict_video(runtime, source, place, threshold, pictures) for source, place in videos]
    entries = {entry["file"]: entry for part in gathered(own) for entry in part}
    made = shards.merge(out / "predictions.json", [entries[str(source.path)] for source in found[len(images) :]])
    if images:
        say(f"{out / 'predictions.json'}: {made}")
    for entry in entries.values():
        say(f"{entry['lines']}: {entry['frames']} frames of {entry['file']}")
    return out / "predictions.json"


class Each:
    """What is done with one image: its rows of predictions.json, and its drawing.

    listed: the numbers of a data set, for COCO's results. several: images that have several frames, in words.
    """

    def __init__(self, runtime: Runtime, threshold: float, listed: Listing | None, pictures: bool) -> None:
        self.runtime, self.threshold, self.listed, self.pictures = runtime, threshold, listed, pictures
        self.several: list[str] = []

    def __call__(self, source: Source, place: Path) -> list[dict[str, Any]]:
        """No rows of an image that cannot be read and was not named. Raises UserError of one that was."""
        entry = None if self.listed is None else self.listed.entry(source.path)
        try:
            image = read_image(source.path, None if entry is None else entry.size)
        except UserError as error:
            if source.named or entry is not None:
                raise
            logger.warning("left out: %s", error)
            return []
        self.several += _frames_beside(source.path)
        detections = self.runtime.predict(image, threshold=0)
        shown = above(detections, self.threshold)
        if self.pictures:
            with writing(place.with_name(f"{place.name}.jpg")) as temporary:
                _drawn(image, shown, self.runtime).save(temporary, "JPEG", quality=92)
        if entry is not None and self.listed is not None:
            return self.listed.rows(entry, detections)
        return [{"file": str(source.path), "detections": _plain(shown, self.runtime.class_map)}]


def predict_video(runtime: Runtime, source: Source, place: Path, threshold: float, pictures: bool) -> dict[str, Any]:
    """Write `place`.jsonl and, with `pictures`, `place`.mp4, a frame at a time. Returns the entry of predictions.json."""
    lines, drawn, count = place.with_name(f"{place.name}.jsonl"), place.with_name(f"{place.name}.mp4"), 0
    with (
        open_video(str(source.path)) as video,
        writing(lines) as temporary,
        open(temporary, "w", encoding="utf-8") as text,
        write_video(drawn, video) if pictures else nullcontext() as put,
        counting(str(source.path), video.frames) as step,
    ):
        try:
            for frame in video:
                detections = runtime.predict(frame.pixels, threshold)
                if put is not None:
                    put(frame, np.asarray(_drawn(Image.fromarray(frame.pixels), detections, runtime)))
                row = {
                    "frame": frame.number,
                    "time": round(frame.seconds, 3),
                    "detections": _plain(detections, runtime.class_map),
                }
                text.write(json.dumps(row) + "\n")
                count += 1
                step()
        except KeyboardInterrupt:
            if not video.live or not count:
                raise
    return {"file": str(source.path), "frames": count, "lines": str(lines)}


def _drawn(image: Image.Image, detections: Detections, runtime: Runtime) -> Image.Image:
    return draw(image, detections, runtime.class_map.names, max(image.size), scores=True)


def _frames_beside(path: Path) -> list[str]:
    """Of an image with several frames: its name and their number."""
    try:
        with Image.open(path) as image:
            return [f"{path} has {getattr(image, 'n_frames', 1)}"] if has_frames(image) else []
    except Exception:  # frames behind the first are damaged; Pillow's readers raise whatever the bytes lead them to
        return []


def check_format(form: str, annotations: Path | None) -> None:
    """Raises UserError for an unknown format, and where it needs annotations."""
    if form not in FORMATS:
        raise unknown("format", form, FORMATS)
    if form == "coco" and annotations is None:
        raise UserError("the coco format numbers images as a data set does: name its JSON with --annotations")


def _plain(found: Detections, classes: ClassMap) -> list[dict[str, Any]]:
    rows = zip(found.labels.tolist(), found.scores.tolist(), found.boxes.tolist(), strict=True)
    return [
        {"class": classes.names[label], "score": round(score, 4), "box": [round(side, 1) for side in box]}
        for label, score, box in rows
    ]
