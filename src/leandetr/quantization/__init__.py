"""Quantization: `quantize(detector, scheme, calibration_batches)`, its schemes, and how quantized models save and load."""

from leandetr.quantization.checkpoint import QuantizationRecord
from leandetr.quantization.config import Dynamic, LowBit, Scheme, SmoothQuant, Static, Unified, WeightOnly, scheme_config
from leandetr.quantization.layers.operators import onnx_translations
from leandetr.quantization.quantize import quantize
from leandetr.quantization.torchao import to_torchao
from leandetr.quantization.training.clipping import LogClipped
from leandetr.quantization.training.finish import finish, in_training

__all__ = [
    "Dynamic",
    "LogClipped",
    "LowBit",
    "QuantizationRecord",
    "Scheme",
    "SmoothQuant",
    "Static",
    "Unified",
    "WeightOnly",
    "finish",
    "in_training",
    "onnx_translations",
    "quantize",
    "scheme_config",
    "to_torchao",
]
