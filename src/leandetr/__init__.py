"""leandetr: train, distil, quantize, export and measure DETR-family object detectors.

    import leandetr

    leandetr.train("DATA", "rt_detr_v2", "runs/teacher", image_size=(256, 256), backbone="resnet50", weights="hub")
    leandetr.distill("DATA", "runs/teacher", "rt_detr_v2", "runs/student", image_size=(256, 256), backbone="resnet18")
    leandetr.quantize("runs/student", "DATA", "static", "runs/student-static")
    leandetr.export("runs/student-static", "student.onnx")
    print(leandetr.evaluate("student.onnx", "DATA").ap)

Importing it registers its quantized checkpoints with transformers, so `AutoModelForObjectDetection.from_pretrained` reads them.
"""

import logging
from importlib import import_module
from typing import Any

# where torchao is installed, importing transformers' quantizers makes torch warn of torchao's own enums
logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)

import leandetr.quantization.checkpoint  # noqa: E402, F401 - registers the quantizer

_HOMES = {
    "leandetr.verbs": ("train", "distill", "pretrain", "quantize", "evaluate", "export", "predict", "benchmark"),
    "leandetr.pipeline": ("compress",),
    "leandetr.recipe": ("Recipe", "Study", "read_recipe"),
    "leandetr.training.config": ("Training",),
    "leandetr.detectors.load": ("load",),
    "leandetr.detectors.create": ("create",),
    "leandetr.detectors.detector": ("Detector",),
    "leandetr.errors": ("UserError",),
    "leandetr.structures": ("ClassMap", "Detections", "DetectorOutput", "Preprocessing", "Queries"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
__all__ = [*_HOME_OF]  # noqa: PLE0604 - names that are imported when they are first asked for
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'leandetr' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)
