"""leandetr: train, distil, quantize, export and measure DETR-family object detectors.

    import leandetr
    from leandetr import NewDetector, Teaching

    large = NewDetector(model="rt_detr_v2", backbone="resnet50", weights="hub", image_size=(256, 256))
    small = NewDetector(model="rt_detr_v2", backbone="resnet18", weights="hub", image_size=(256, 256))
    leandetr.train("DATA", large, "runs/teacher")
    leandetr.distill("DATA", Teaching(teacher="runs/teacher", method="fitnet"), small, "runs/student")
    leandetr.quantize("runs/student", "DATA", "static", "runs/student-static")
    leandetr.export("runs/student-static", "student.onnx")
    print(leandetr.evaluate("student.onnx", "DATA").ap)

Importing it is quick: torch and transformers are imported with the first public name that is used, which also teaches
transformers to read what leandetr writes. Where none is used, `import leandetr.transformers` does.
"""

import importlib
import logging
from typing import Any

import lazy_loader

# where torchao is installed, importing transformers' quantizers makes torch warn of torchao's own enums
logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)

_public, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # `__init__.pyi` says what is where


def __getattr__(name: str) -> Any:
    value = _public(name)
    importlib.import_module("leandetr.transformers")
    return value


__version__ = "0.1.0"
