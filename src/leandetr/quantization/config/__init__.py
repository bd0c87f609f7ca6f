"""What to quantize and how: one frozen dataclass a scheme, and per-layer overrides by name pattern.

| scheme | weights | activations |
|---|---|---|
| `WeightOnly` | int8, one scale an output channel; or 2 to 7 bits, one scale a group | float |
| `Dynamic` | int8, one scale an output channel | Linear: uint8, on a grid taken at run time; Conv2d: float, see `Dynamic` |
| `Static` | 2 to 8 bits, a scale an output channel | uint8 on calibrated grids, 2 to 8 bits, see `passes/placement.py` |
| `SmoothQuant` | as one of these, after outliers of inputs have moved into weights, see `passes/smooth.py` | as there |
| `Unified` | as the best of these for the layer, see `choice/unified.py` | as there |
| `LowBit` | 2 to 8 bits, trained, one step an output channel | 2 to 8 bits, trained, those of attention too |

Every scheme folds BatchNorm into the convolution before it first, and all but `LowBit` the two convolutions of a RepVGG block
into one; both are exact (`passes/fold.py`).

    Static(overrides={"model.encoder.*": "dynamic", "model.decoder.layers.0.*": "float", "*.fc2": Static(weight_bits=4)})
"""

from leandetr.quantization.config.low_bit import LowBit
from leandetr.quantization.config.post_training import AUTO, Dynamic, SmoothQuant, Static, Unified, WeightOnly
from leandetr.quantization.config.scheme import FLOAT, OPERANDS, SCHEMES, Scheme, calibration_images, from_dict, scheme_config

__all__ = [
    "AUTO",
    "FLOAT",
    "OPERANDS",
    "SCHEMES",
    "Dynamic",
    "LowBit",
    "Scheme",
    "SmoothQuant",
    "Static",
    "Unified",
    "WeightOnly",
    "calibration_images",
    "from_dict",
    "scheme_config",
]
