"""The classes of a checkpoint that does not name them: COCO's, or those of a JSON beside it."""

from __future__ import annotations

from pathlib import Path

from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from leandetr.errors import UserError
from leandetr.files import read_json
from leandetr.structures import ClassMap

#: COCO's names by category id, as torchvision lists them: no class at 0 and at ten ids that COCO left out
COCO_BY_ID: tuple[str, ...] = tuple(FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"])
BACKGROUND, UNUSED = "__background__", "N/A"


def published_classes(columns: int, file: Path | None = None) -> ClassMap:
    """One class a column of a class head, whose no-object column (DETR's last one) is not counted.

    A JSON beside the checkpoint, `weights.json` for `weights.pth`, says their names: a list with one text a column, in their
    order, "__background__" or "N/A" where a column stands for no class. Without it, 91 columns and more are COCO's
    category ids, as facebookresearch and torchvision number them, and 80 are COCO's classes without gaps. Their data set's ids
    are then COCO's, else the numbers of the columns.

    Raises:
        UserError: another number of columns without such a JSON, or a JSON that does not fit.
    """
    beside = None if file is None else Path(file).with_suffix(".json")
    if beside is not None and beside.is_file():
        names = read_json(beside)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(names) != columns:
            raise UserError(
                f"{beside} must be a list of {columns} class names, one for each column of the class head of {file} "
                f"({BACKGROUND!r} or {UNUSED!r} where a column stands for no class); write it so"
            )
        return ClassMap(tuple(names), tuple(range(columns)))
    coco = [(name, number) for number, name in enumerate(COCO_BY_ID) if name not in (BACKGROUND, UNUSED)]
    if columns == len(coco):
        return ClassMap(*zip(*coco, strict=True))
    if len(COCO_BY_ID) <= columns <= len(COCO_BY_ID) + 1:  # SMCA-DETR has one column more than it uses
        return ClassMap(COCO_BY_ID + (UNUSED,) * (columns - len(COCO_BY_ID)), tuple(range(columns)))
    raise UserError(
        f"{file} has {columns} classes, which are not COCO's: write their names, in the order of its columns, as a JSON list "
        f"to {beside}"
    )
