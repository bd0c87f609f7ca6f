"""A split in two halves: photographs that choose among detectors, and others on which the chosen one is reported."""

from __future__ import annotations

import hashlib

from leandetr.data.annotations import Split, read_annotations, read_coco
from leandetr.data.cache import cache_folder
from leandetr.errors import UserError
from leandetr.files import read_json, write_json

BLOCKS = 16
NAMES = ("choosing", "reporting")


def halves(split: Split) -> tuple[Split, Split]:
    """The images that choose and those that report, whose annotations lie in the user's cache.

    In the order of their names the images are cut into 16 blocks (one for each image where there are fewer), and the halves
    take them in turn: frames of a video that follow each other are mostly in the same half.

    Raises UserError where one half would hold no object.
    """
    whole = read_coco(split.annotations)
    state = [split.annotations.read_bytes(), str(split.annotations.resolve()), BLOCKS]
    cache = cache_folder(hashlib.sha256(repr(state).encode()).hexdigest()[:32])
    files = [cache / f"instances_{name}.json" for name in NAMES]
    if not all(file.is_file() for file in files):
        images = sorted(whole["images"], key=lambda image: str(image.get("file_name")))
        coco, blocks = read_json(split.annotations), min(BLOCKS, max(1, len(images)))
        for half, file in enumerate(files):
            mine = [image for number, image in enumerate(images) if number * blocks // len(images) % 2 == half]
            ids = {image.get("id") for image in mine}
            annotations = [entry for entry in coco["annotations"] if entry.get("image_id") in ids]
            write_json(file, coco | {"images": mine, "annotations": annotations})
    roots = (split.annotations.parent, *split.roots)
    if any(not read_json(file)["images"] or read_annotations(file).crowd.all() for file in files):
        raise UserError(
            f"{split.annotations} has too few photographs with objects to choose on one half and report on the other; add more"
        )
    choosing, reporting = (Split(file, split.images, roots) for file in files)
    return choosing, reporting
