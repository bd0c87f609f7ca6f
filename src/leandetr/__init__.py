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

import lazy_loader

# where torchao is installed, importing transformers' quantizers makes torch warn of torchao's own enums
logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)

import leandetr.quantization.checkpoint  # noqa: E402, F401 - registers the quantizer

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # `__init__.pyi` says what is where
__version__ = "0.1.0"
