"""`Preprocessing` <-> transformers' `preprocessor_config.json`, so that either library reads what the other wrote."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers.image_processing_base import ImageProcessingMixin
from transformers.utils.hub import cached_file

from leandetr.errors import UserError
from leandetr.files import write_json
from leandetr.heads import Head
from leandetr.structures import Preprocessing

logger = logging.getLogger(__name__)

FILE = "preprocessor_config.json"
#: the class whose post-processing fits the head: top-k over queries and classes, or the best class of every query
PROCESSORS = {Head.SIGMOID: "DeformableDetrImageProcessor", Head.SOFTMAX: "DetrImageProcessor"}
WITHOUT_ANTIALIAS = "RfDetrImageProcessor"

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

#: Pillow's numbers of those filters that are read
RESAMPLE = {0: "nearest", 2: "bilinear", 3: "bicubic"}
OTHER_RESAMPLE = {1: " (Lanczos)", 4: " (box)", 5: " (Hamming)"}
#: what a file leaves out is its processor's default; of a file that names no processor, DETR's
READ = ("size", "resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
#: steps that are done here whatever they say, or are no matter of pixels; of one image by itself, padding to the batch is none
WITHOUT_EFFECT = ("do_convert_annotations", "do_convert_rgb", "do_pad")


def read_preprocessing(source: str) -> Preprocessing | None:
    """What transformers' image processor would do, from a folder or hub id; None where there is no file of it.

    Raises UserError where the file cannot be read, or asks for what is not done here: no resizing, padding to a fixed size,
    cropping, another filter than nearest, bilinear and bicubic.
    """
    try:
        if cached_file(source, FILE, _raise_exceptions_for_missing_entries=False) is None:
            return None
        values, _ = ImageProcessingMixin.get_image_processor_dict(str(source))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{source} has no readable {FILE}; save the model's image processor beside it") from error
    place = f"{source}/{FILE}"
    if not isinstance(values, dict):
        raise UserError(f"{place} holds no dictionary; save the model's image processor beside it")
    processor = _processor(values, place)
    values = {key: getattr(processor, key) for key in READ} | values
    _check_steps(values, place)
    resample = values["resample"]
    if not isinstance(resample, int) or resample not in RESAMPLE:
        other = OTHER_RESAMPLE.get(resample, "") if isinstance(resample, int) else ""
        raise UserError(
            f"{place}: resample {resample!r:.60}{other} is not done here; give 0 (nearest), 2 (bilinear) or 3 (bicubic)"
        )
    mean, std = ((0.0,) * 3, (1.0,) * 3) if not values["do_normalize"] else _mean_and_std(values, place)
    # what a pixel value is multiplied with, relative to the 1 / 255 that it is multiplied with here
    scale = 255 * _factor(values["rescale_factor"], place) if values["do_rescale"] else 255
    try:
        return Preprocessing(
            **_size(values, place),
            mean=tuple(value / scale for value in mean),
            std=tuple(value / scale for value in std),
            resample=RESAMPLE[resample],
            antialias=processor.__name__ != WITHOUT_ANTIALIAS,
        )
    except UserError as error:
        raise UserError(f"{place}: {error}") from error


def _factor(value: Any, place: str) -> float:
    if not _is_number(value) or not value:
        raise UserError(f"{place}: rescale_factor is {value!r:.60}; give what a byte is multiplied with, as 1 / 255")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300


def _processor(values: Mapping[str, Any], place: str) -> Any:
    """The class of transformers that a file names, under any name that it has had."""
    named = values.get("image_processor_type") or values.get("feature_extractor_type")
    if named is None:
        absent = [key for key in READ if key not in values]
        if absent:
            logger.warning("%s names no image_processor_type: DETR's defaults serve for %s", place, ", ".join(absent))
        return transformers.DetrImageProcessor
    name = str(named).replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast").removesuffix("Pil")
    found = getattr(transformers, name, None)
    if found is None or not all(hasattr(found, key) for key in READ):
        raise UserError(
            f"{place}: image_processor_type {named!r:.60} is not one of transformers' for images; name the model's own"
        )
    return found


def _check_steps(values: Mapping[str, Any], place: str) -> None:
    """Raises UserError for a step that is not done here, and for the lack of one that always is."""
    if not values.get("do_resize", True):
        raise UserError(f"{place}: do_resize is false, but images are resized here; set it to true, with the size")
    steps = {"do_resize", "do_rescale", "do_normalize", *WITHOUT_EFFECT}
    for key, value in values.items():
        if key.startswith("do_") and value and key not in steps:
            raise UserError(f"{place}: {key} is not done here; set it to false if the model was trained without")
    if values.get("do_pad", True) and values.get("pad_size"):
        raise UserError(
            f"{place}: pad_size pads images to a fixed size, which is not done here; remove it and set size to a height and "
            "width, to which images are squeezed, and train the model further so"
        )


def _mean_and_std(values: Mapping[str, Any], place: str) -> list[tuple[float, ...]]:
    found: list[tuple[float, ...]] = []
    for key in ("image_mean", "image_std"):
        value = values[key]
        channels = tuple(value) if isinstance(value, list | tuple) else (value,) * 3
        if len(channels) != 3 or not all(map(_is_number, channels)):
            raise UserError(f"{place}: {key} is {value!r:.60}; give a number for red, green and blue each")
        found.append(channels)
    return found


def _size(values: Mapping[str, Any], place: str) -> dict[str, Any]:
    size = values["size"]
    if isinstance(size, int):  # transformers' oldest DETR files: the shorter side, with the longer one in max_size
        size = {"shortest_edge": size, "longest_edge": values.get("max_size", 1333)}
    elif isinstance(size, list | tuple) and len(size) == 2:
        size = {"height": size[0], "width": size[1]}
    if isinstance(size, Mapping):
        if size.get("height") and size.get("width"):
            return {"size": (_side(size["height"]), _side(size["width"]))}
        if size.get("shortest_edge"):
            edges = {
                key: value if (value := size.get(key)) is None else _side(value) for key in ("shortest_edge", "longest_edge")
            }
            return {"size": None} | edges
    raise UserError(f"{place}: size {size!r:.60} is neither height and width nor shortest_edge; name one")


def _side(value: Any) -> Any:
    """Pixels, also where a file has them as 640.0; `Preprocessing` refuses the rest."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


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
        "image_processor_type": PROCESSORS[head] if preprocessing.antialias else WITHOUT_ANTIALIAS,
        "do_resize": True,
        "size": size,
        "resample": next(number for number, name in RESAMPLE.items() if name == preprocessing.resample),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
        "do_pad": preprocessing.size is None,
        "do_convert_annotations": True,
        "format": "coco_detection",
    }
    write_json(folder / FILE, values)
