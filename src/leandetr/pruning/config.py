"""How much is pruned, and by what units are ranked."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from leandetr.checked import Checked


class Pruning(Checked):
    """What of a detector's feed-forward layers is left out.

    Attributes:
        ratio: of the multiply-adds of all its feed-forward layers, between 0 and 1, both excluded.
        importance: "taylor", what the loss would change to first order without a unit, or "magnitude" of its weights.
        calibration_images: photographs of the training split that the loss is computed on, evenly spread; all where there are
            fewer.
    """

    ratio: float = Field(gt=0, lt=1)
    importance: Literal["taylor", "magnitude"] = "taylor"
    calibration_images: int = Field(128, ge=1)
