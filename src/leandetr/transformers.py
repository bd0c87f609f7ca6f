"""Teaches transformers' Auto classes to read what leandetr writes: quantized checkpoints, and the families that are built here.

    import leandetr.transformers
    from transformers import AutoModelForObjectDetection

    model = AutoModelForObjectDetection.from_pretrained("runs/student-static")

leandetr's own functions need no such line.
"""

import leandetr.detectors.detector
import leandetr.quantization.checkpoint  # noqa: F401
