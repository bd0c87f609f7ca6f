"""The values of one entry of a COCO JSON, as tools write them."""

import math
from typing import Any

from faster_coco_eval import mask

FALSE = ("", "0", "false", "no")


def is_whole(value: Any) -> bool:
    """Whether a JSON value is a whole number of 64 bits; 640.0 is one."""
    found = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return found and abs(value) < 2**63


def whole(value: Any) -> int | None:
    """A whole number, also where it is written as text ("96"); None where it is none."""
    if isinstance(value, str) and value.strip().isdecimal() and len(value) < 20:
        value = int(value)
    return int(value) if is_whole(value) else None


def finite(value: Any) -> float | None:
    """A JSON number as a float; None where it is none, or beyond what a float holds."""
    if not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def is_crowd(annotation: dict[str, Any]) -> bool:
    """COCO's `iscrowd`: 0 or 1, or as tools write it "0", "false", false, null.

    >>> [is_crowd({"iscrowd": value}) for value in (1, "1", "true", 0, "0", "False", None)]
    [True, True, True, False, False, False, False]
    """
    value = annotation.get("iscrowd", 0)
    return value.strip().lower() not in FALSE if isinstance(value, str) else bool(value)


def box_of(annotation: dict[str, Any]) -> list[float]:
    """The annotation's (x, y, width, height), that around its polygons or run lengths where there is no `bbox`; not-a-number
    where neither is four numbers.

    >>> box_of({"segmentation": [[2, 3, 6, 3, 6, 8]]})
    [2.0, 3.0, 4.0, 5.0]
    """
    given = annotation.get("bbox")
    try:
        box = [float(value) for value in (given or _around(annotation.get("segmentation")))]
    except (KeyError, TypeError, ValueError, OverflowError):
        box = []
    return box if len(box) == 4 else [math.nan] * 4


def _around(segmentation: Any) -> list[float]:
    """COCO's three forms: polygons [[x, y, x, y, ...], ...], run lengths {"counts": list or text, "size": [height, width]}."""
    if isinstance(segmentation, dict):
        height, width = segmentation["size"]
        if isinstance(segmentation["counts"], list):
            segmentation = mask.frPyObjects(segmentation, height, width)
        return [float(value) for value in mask.toBbox(segmentation)]
    polygons = segmentation if isinstance(segmentation[0], list) else [segmentation]
    x, y = ([float(value) for polygon in polygons for value in polygon[start::2]] for start in (0, 1))
    if len(x) != len(y) or len(x) < 2:
        return []
    return [min(x), min(y), max(x) - min(x), max(y) - min(y)]
