"""Quantization: `quantize(detector, scheme, calibration_batches)`, its schemes, and how quantized models save and load."""

from leandetr.quantization.checkpoint import QuantizationRecord
from leandetr.quantization.config import Dynamic, Scheme, Static, WeightOnly, scheme_config
from leandetr.quantization.operators import onnx_translations
from leandetr.quantization.quantize import quantize

__all__ = ["Dynamic", "QuantizationRecord", "Scheme", "Static", "WeightOnly", "onnx_translations", "quantize", "scheme_config"]
