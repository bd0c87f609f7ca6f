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

from leandetr.data.images import read_image
from leandetr.deployment.listing import Listing
from leandetr.deployment.progress import counting
from leandetr.deployment.runtime import Runtime
from leandetr.deployment.sources import Kind, Source, find_sources, result_places
from leandetr.deployment.video import open_video, write_video
from leandetr.drawing import above, draw
from leandetr.errors import UserError, unknown
from leandetr.files import write_json, writing
from leandetr.structures import ClassMap, Detections

logger = logging.getLogger(__name__)

FORMATS = ("plain", "coco")


def predict_sources(
    runtime: Runtime,
    sources: Sequence[str | Path | int],
    out: Path,
    threshold: float = 0.3,
    form: str = "plain",
    annotations: Path | None = None,
    pictures: bool = True,
) -> Path:
    """Detect, draw, and write `out`/predictions.json.

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
    listed = None if annotations is None or form != "coco" else Listing(annotations, runtime.class_map)
    rows: list[Any] = []
    several: list[str] = []
    with counting("images", len(images)) as step:
        for source, place in zip(images, places):
            entry = None if listed is None else listed.entry(source.path)
            try:
                image = read_image(source.path, None if entry is None else entry.size)
            except UserError as error:
                if source.named or entry is not None:
                    raise
                logger.warning("left out: %s", error)
                continue
            several += _frames_beside(source.path)
            detections = runtime.predict(image, threshold=0)
            if entry is not None and listed is not None:
                rows += listed.rows(entry, detections)
            else:
                rows.append({"file": str(source.path), "detections": _plain(above(detections, threshold), runtime.class_map)})
            if pictures:
                with writing(place.with_name(f"{place.name}.jpg")) as temporary:
                    _drawn(image, above(detections, threshold), runtime).save(temporary, "JPEG", quality=92)
            step()
    if several:
        logger.warning("%d images have several frames, of which the first is read: %s", len(several), several[0])
    for source, place in zip(found[len(images) :], places[len(images) :]):
        rows.append(predict_video(runtime, source, place, threshold, pictures))
    write_json(out / "predictions.json", rows)
    return out / "predictions.json"


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
    with Image.open(path) as image:
        frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # a phone's JPEG with its preview
    return [f"{path} has {frames}"] if frames > 1 else []


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
