"""Train a detector on the grid of 4-bit integers, with the float one as its teacher (Q-DETR's distillation).

The detector that is saved holds the integers; the exported file multiplies them.

    python examples/low_bit_training.py DATA DETECTOR runs/4-bit
"""

import sys
from pathlib import Path

import leandetr
from leandetr import LowBit, LowBitTraining, Teaching, Training


def main(data: str, detector: str, out: str, training: Training = Training(epochs=12, grid_frozen=0.1)) -> leandetr.Detector:
    teaching = Teaching(teacher=detector, method="drd")
    plan = LowBitTraining(training=training, teaching=teaching)
    made = leandetr.quantize(detector, data, LowBit(bits="4-4-8", calibration_images=64), Path(out), low_bit=plan)
    print(made.config.quantization_config.summary())
    return made


if __name__ == "__main__":
    main(*sys.argv[1:])
