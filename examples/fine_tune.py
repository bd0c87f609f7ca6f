"""Fine-tune a saved detector on your own images and keep the best by AP.

DATA is a folder in COCO's, Pascal VOC's or YOLO's layout; CHECKPOINT a folder or a hub id of the same classes. Started again
with the same arguments, an interrupted training goes on where it was.

    python examples/fine_tune.py DATA CHECKPOINT runs/fine-tuned
"""

import sys
from pathlib import Path

import leandetr
from leandetr import Training


def main(data: str, checkpoint: str, out: str, training: Training = Training(epochs=30, lr=5e-5)) -> float:
    before = leandetr.evaluate(checkpoint, data)
    leandetr.train(data, checkpoint, Path(out), training)
    after = leandetr.evaluate(out, data)
    print(f"AP {before.ap:.3f} before, {after.ap:.3f} after")
    return after.ap


if __name__ == "__main__":
    main(*sys.argv[1:])
