"""Add a quantization scheme: a frozen dataclass that says, layer by layer, which of the others a layer gets.

Here the backbone holds 4-bit weights and everything else is on calibrated 8-bit grids. The result is a detector like any other:
it is saved, loaded, evaluated and exported without further code.

    python examples/add_a_scheme.py DATA DETECTOR runs/mixed
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import leandetr
from leandetr import Scheme, Static, WeightOnly


@dataclass(frozen=True)
class SmallBackbone(Static):
    """As `Static`, but for the backbone, whose weights have `backbone_bits`."""

    backbone_bits: int = 4

    name: ClassVar[str] = "small-backbone"

    def setting(self, names: list[str]) -> tuple[Scheme | None, str]:
        found, reason = super().setting(names)
        if "backbone" in names[0] and found is self:  # no exception and no override has it
            return WeightOnly(bits=self.backbone_bits, calibration_images=self.calibration_images), "backbone"
        return found, reason


def main(data: str, detector: str, out: str) -> str:
    made = leandetr.quantize(detector, data, SmallBackbone(calibration_images=64), Path(out), calibration=None)
    summary = made.config.quantization_config.summary()
    print(summary)
    return summary


if __name__ == "__main__":
    main(*sys.argv[1:])
