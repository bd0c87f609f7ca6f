"""`Preprocessing` <-> transformers' `preprocessor_config.json`, so that either library reads what the other wrote."""

from pathlib import Path
from typing import Any

from transformers.image_processing_base import ImageProcessingMixin
from transformers.utils.hub import cached_file

from leandetr.errors import UserError
from leandetr.files import write_json
from leandetr.heads import Head
from leandetr.structures import Preprocessing

#: the class whose post-processing fits the head: top-k over queries and classes, or the best class of every query
PROCESSORS = {Head.SIGMOID: "DeformableDetrImageProcessor", Head.SOFTMAX: "DetrImageProcessor"}

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def read_preprocessing(source: str) -> Preprocessing | None:
    """From a folder or hub id; None where there is no file of it. Raises UserError where it cannot be read or its `size` not be
    understood."""
    try:
        if cached_file(source, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False) is None:
            return None
        values, _ = ImageProcessingMixin.get_image_processor_dict(str(source))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{source} has no readable preprocessor_config.json; save the model's image processor beside it"
        ) from error
    normalise = values.get("do_normalize", True)
    mean, std = values.get("image_mean", IMAGENET_MEAN), values.get("image_std", IMAGENET_STD)
    size = values.get("size", {"height": 640, "width": 640})
    if isinstance(size, int):  # transformers' oldest DETR files: the shorter side, with the longer one in max_size
        size = {"shortest_edge": size, "longest_edge": values.get("max_size", 1333)}
    shared: dict[str, Any] = {"mean": tuple(mean) if normalise else (0.0,) * 3, "std": tuple(std) if normalise else (1.0,) * 3}
    if "height" in size:
        return Preprocessing(size=(int(size["height"]), int(size["width"])), **shared)
    if "shortest_edge" in size:
        return Preprocessing(size=None, shortest_edge=size["shortest_edge"], longest_edge=size.get("longest_edge"), **shared)
    raise UserError(f"{source}/preprocessor_config.json: size {size} is neither height and width nor shortest_edge; name one")


def resized_to(image_size: int | tuple[int, int]) -> dict[str, Any]:
    """The sizes of a `Preprocessing`: a fixed (height, width), or the shorter side, the longer one at most 5/3 of it as in
    DETR's lineage.

    >>> resized_to(800)
    {'size': None, 'shortest_edge': 800, 'longest_edge': 1333}
    """
    if isinstance(image_size, int):
        return {"size": None, "shortest_edge": image_size, "longest_edge": image_size * 5 // 3}
    return {"size": tuple(image_size), "shortest_edge": None, "longest_edge": None}


def write_preprocessing(folder: Path, preprocessing: Preprocessing, head: Head) -> None:
    """Write `folder`/preprocessor_config.json, which transformers' `AutoImageProcessor` reads too."""
    size: dict[str, int | None]
    if preprocessing.size is not None:
        size = dict(zip(("height", "width"), preprocessing.size, strict=True))
    else:
        size = {"shortest_edge": preprocessing.shortest_edge, "longest_edge": preprocessing.longest_edge}
    values = {
        "image_processor_type": PROCESSORS[head],
        "do_resize": True,
        "size": size,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
        "do_pad": preprocessing.size is None,
        "do_convert_annotations": True,
        "format": "coco_detection",
    }
    write_json(folder / "preprocessor_config.json", values)
