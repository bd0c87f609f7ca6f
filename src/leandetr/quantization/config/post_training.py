"""The schemes that need no training: their integers come from the float model's weights and from calibration images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from leandetr.errors import unknown
from leandetr.quantization.config.scheme import FLOAT, Scheme
from leandetr.quantization.grids import OBSERVERS, GridSetting

GROUP_SIZES = (32, 64, 128)

AUTO = "auto"
ACTIVATIONS = (FLOAT, "dynamic", "static")
CPU, TENSORRT, XNNPACK = TARGETS = ("cpu", "tensorrt", "xnnpack")


@dataclass(frozen=True)
class WeightOnly(Scheme):
    """Integer weights, float arithmetic: the file shrinks to about a quarter, with 4 bits to less than a sixth; the speed stays
    that of float.

    The default exceptions hold 8 bits here, since their arithmetic is float all the same.

    Args:
        bits: 2 to 8 of a weight.
        group_size: 32, 64 or 128 weights along the input dimension that share a scale, where there are fewer than 8 bits; with
            8 it is the whole output channel. A layer whose inputs it does not divide takes the largest smaller group that does,
            of 16 or more; one without any (depthwise convolutions, the first layer) holds 8 bits.
        calibration_images: how many images are read to round fewer than 8 bits by what that does to detections, beginning with
            what makes a layer's errors make up for each other (`passes/reconstruct.py`, `layers/rounding.py`); 0 rounds every
            weight to its nearest integer, which costs much AP, and needs no images. It is 0 with 8 bits, of which the nearest
            is good enough.
    """

    bits: int = 8
    group_size: int = 64
    calibration_images: int = 512

    name: ClassVar[str] = "weight-only"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_bits("bits", self.bits)
        self._require(self.group_size in GROUP_SIZES, "group_size", ", ".join(map(str, GROUP_SIZES)))
        self._require_images(self.calibration_images, least=0)
        if self.bits == 8:
            object.__setattr__(self, "calibration_images", 0)

    def careful(self) -> Scheme:
        return WeightOnly()


@dataclass(frozen=True)
class Dynamic(Scheme):
    """Linear layers multiply integers, their input's grid being taken when they run; convolutions hold integer weights alone.

    ONNX Runtime's ConvInteger is slower than its float convolution: 10.2 against 1.6 ms for 64 to 64 channels, 3x3, at 60x80,
    and 4.7 against 0.9 ms for 256 to 64, 1x1 (one thread, AVX-512 VNNI). Its integer Linear is faster: 0.8 against 2.7 ms for
    1050x256x1024.

    Args:
        per_row: whether every row (query, token, cell) of an input has a grid of its own, which rounds finer where rows differ
            in size and lets no image depend on those beside it; engines are slower with it.
    """

    per_row: bool = False

    name: ClassVar[str] = "dynamic"

    def careful(self) -> Scheme:
        return WeightOnly()


@dataclass(frozen=True)
class Static(Scheme):
    """Linear and Conv2d multiply integers on grids found with calibration images.

    Args:
        weight_bits, activation_bits: 2 to 8; stored in 8 bits each.
        observer: how a grid's range is found: "min-max", "moving-average" (0.9 over batches), "percentile" (`percentile` of
            the values are inside), "mse" (the range with the least squared rounding error) or "entropy" (that whose histogram
            diverges least from the tensor's).
        percentile: in percent, above 50.
        calibration_images: how many images are read from the batches.
        attention: whether the products of attention, q k^T and p v, multiply integers too, where the model's attention can be
            opened; what that gains is in `passes/operands.py`.
        target: what the grids are for. "cpu", ONNX Runtime and OpenVINO: unsigned, with zero points. "tensorrt": signed around
            0, of 8 bits, and none on the output of a convolution that no ReLU follows, as TensorRT wants it. "xnnpack",
            ExecuTorch and LiteRT: as for the CPU, of 8 bits, and one on the output of every layer, linear ones too.
    """

    weight_bits: int = 8
    activation_bits: int = 8
    observer: str = "min-max"
    percentile: float = 99.99
    calibration_images: int = 128
    attention: bool = False
    target: str = CPU

    name: ClassVar[str] = "static"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_bits("weight_bits", self.weight_bits)
        self._require_bits("activation_bits", self.activation_bits)
        if self.observer not in OBSERVERS:
            raise unknown("observer", self.observer, OBSERVERS)
        if self.target not in TARGETS:
            raise unknown("target of static", self.target, TARGETS)
        self._require(self.target == CPU or self.activation_bits == 8, "activation_bits", f"8 with the target {self.target}")
        self._require(50 < self.percentile <= 100, "percentile", "more than 50 and at most 100")
        self._require_images(self.calibration_images)

    def careful(self) -> Scheme:
        return WeightOnly()

    def grid(self) -> GridSetting:
        """How the grids of activations are found."""
        symmetric = self.target == TENSORRT
        return GridSetting(self.activation_bits, self.observer, self.percentile, self.calibration_images, symmetric)

    def operand(self, name: str) -> GridSetting | None:
        return self.grid() if self.attention else None


@dataclass(frozen=True)
class SmoothQuant(Scheme):
    """Linear layers whose outlying input channels have been moved into their weights, see `passes/smooth.py`; then as another
    scheme.

    Args:
        activations: "float", as `WeightOnly`; "dynamic" or "static", as those schemes.
        alpha: how much of the outliers is moved, 0 to 1; or "auto", chosen for each layer by its error on the calibration
            images.
        observer, percentile: of static grids, see `Static`.
        calibration_images: how many images are read from the batches; with static grids they are read twice.
    """

    activations: str = FLOAT
    alpha: float | str = 0.5
    observer: str = "min-max"
    percentile: float = 99.99
    calibration_images: int = 128

    name: ClassVar[str] = "smoothquant"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.activations not in ACTIVATIONS:
            raise unknown("activations of smoothquant", self.activations, ACTIVATIONS)
        in_range = isinstance(self.alpha, int | float) and 0 <= self.alpha <= 1
        self._require(self.alpha == AUTO or in_range, "alpha", f"0 to 1, or {AUTO}")
        self._require_images(self.calibration_images)
        self.after()

    def after(self) -> Scheme:
        """The scheme by which the smoothed layers, and those that are not smoothed, are quantized."""
        if self.activations == Static.name:
            return Static(observer=self.observer, percentile=self.percentile, calibration_images=self.calibration_images)
        return Dynamic() if self.activations == Dynamic.name else WeightOnly()

    def careful(self) -> Scheme | None:
        return self.after().careful()


@dataclass(frozen=True)
class Unified(Scheme):
    """For every layer one of the other schemes, by what it does to that layer's output on calibration images; see
    `choice/unified.py`.

    Args:
        size: bytes of the tensors, as a share of the float ones, that must be met.
        tolerance: relative squared error of a layer's output that is allowed, in place of a size.
        prefer: of the schemes within the tolerance the fastest arithmetic ("speed"), or the fewest bytes ("size").
        calibration_images: how many images are read from the batches, several times.
        attention: whether the products of an attention whose layers are all on calibrated grids multiply integers too, see
            `passes/operands.py`.
    """

    size: float = 0.27
    tolerance: float | None = None
    prefer: str = "speed"
    calibration_images: int = 64
    attention: bool = False

    name: ClassVar[str] = "unified"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(0 < self.size <= 1, "size", "a share of the float bytes above 0 and at most 1")
        self._require(self.tolerance is None or self.tolerance > 0, "tolerance", "more than 0")
        if self.prefer not in ("speed", "size"):
            raise unknown("preference", self.prefer, ("speed", "size"))
        self._require_images(self.calibration_images)
