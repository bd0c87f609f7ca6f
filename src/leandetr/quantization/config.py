"""What to quantize and how: one frozen dataclass a scheme, and per-layer overrides by name pattern.

| scheme | weights | activations |
|---|---|---|
| `WeightOnly` | int8, one scale an output channel; or 2 to 7 bits, one scale a group | float |
| `Dynamic` | int8, one scale an output channel | Linear: uint8, on a grid taken at run time; Conv2d: float, see `Dynamic` |
| `Static` | 2 to 8 bits, a scale an output channel | uint8 on calibrated grids, 2 to 8 bits, see `placement.py` |
| `SmoothQuant` | as one of these, after outliers of inputs have moved into weights, see `smooth.py` | as there |
| `Unified` | as the best of these for the layer, see `unified.py` | as there |
| `LowBit` | 2 to 8 bits, trained, one step an output channel | 2 to 8 bits, trained, those of attention too |

Every scheme folds BatchNorm into the convolution before it first, and all but `LowBit` the two convolutions of a RepVGG block
into one; both are exact (`fold.py`).

    Static(overrides={"model.encoder.*": "dynamic", "model.decoder.layers.0.*": "float", "*.fc2": Static(weight_bits=4)})
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, ClassVar

from leandetr.errors import UserError, unknown

FLOAT = "float"

#: layers whose arithmetic stays float unless an override says otherwise, and why
DEFAULT_FLOAT = {
    "*class_labels_classifier*": "class head",
    "*class_embed*": "class head",
    "*enc_score_head*": "class head",
    "*.class_head.*": "class head",
    "*bbox_predictor*": "box head",
    "*bbox_embed*": "box head",
    "*enc_bbox_head*": "box head",
    "*.box_head.*": "box head",
    "*reference_points*": "reference points",
    "*ref_point_head*": "reference points",
    "*query_pos_head*": "takes box coordinates",
    "*query_scale*": "scales position embeddings",
    "*pos_trans*": "takes position embeddings of boxes",
    "*sampling_offsets": "sampling offsets",
    "*.attention_weights": "weights of sampled points",
}

#: layers that cannot hold integers, and why
ALWAYS_FLOAT = {"*patch_embeddings.projection": "its caller reads the type of the weight"}

GROUP_SIZES = (32, 64, 128)

AUTO = "auto"
ACTIVATIONS = (FLOAT, "dynamic", "static")

OBSERVERS = ("min-max", "moving-average", "percentile", "mse", "entropy")


@dataclass(frozen=True)
class Scheme:
    """What all schemes share.

    Args:
        overrides: layer-name pattern (`*`, `?`, `[...]`; `*` also crosses dots) -> "float", a scheme's name (the scheme's own
            name means its own options), a scheme, or a scheme as a mapping. Of several patterns that match a layer the last
            one counts; they also outrank the default exceptions.

    Raises:
        UserError: a number of bits out of range, an unknown scheme or option, an override that holds overrides.
    """

    overrides: Mapping[str, Any] = field(default_factory=dict)

    name: ClassVar[str]
    default_float: ClassVar[Mapping[str, str]] = DEFAULT_FLOAT

    def __post_init__(self) -> None:
        settings = {pattern: self._setting(pattern, value) for pattern, value in self.overrides.items()}
        object.__setattr__(self, "overrides", settings)

    def _setting(self, pattern: str, value: Any) -> Scheme | str:
        if value == FLOAT:
            return FLOAT
        if isinstance(value, str):
            if value not in SCHEMES:
                raise unknown(f"setting of override {pattern}:", value, [FLOAT, *SCHEMES])
            value = replace(self, overrides={}) if value == self.name else scheme_config(value)
        elif isinstance(value, Mapping):
            value = from_dict(value)
        if not isinstance(value, Scheme):
            raise UserError(f"override {pattern}: {value!r} is no setting; give {FLOAT}, a scheme's name or its options")
        if value.overrides:
            raise UserError(f"override {pattern}: an override cannot hold overrides; write its patterns beside it")
        if isinstance(value, LowBit) != isinstance(self, LowBit):
            raise UserError(
                f"override {pattern}: {value.name} inside {self.name}, but low-bit layers are trained and others are not; for "
                "8 bits inside low-bit give {scheme: low-bit, bits: 8-8-8}"
            )
        return value

    def setting(self, names: list[str]) -> tuple[Scheme | None, str]:
        """How a layer known under `names` is quantized, None for float, and the reason."""
        found: tuple[Scheme | None, str] = (self, self.name)
        for pattern, reason in self.default_float.items():
            if _matches(pattern, names):
                found = (self.careful(), reason)
        for pattern, reason in ALWAYS_FLOAT.items():
            if _matches(pattern, names):
                found = (None, reason)
        for pattern, value in self.overrides.items():
            if _matches(pattern, names):
                found = (None if value == FLOAT else value, f"override {pattern}")
        return found

    def careful(self) -> Scheme | None:
        """What the default exceptions get, None for float."""
        return None

    def check_overrides(self, names: list[str]) -> None:
        """Raises UserError for a pattern that matches none of a model's layer names."""
        for pattern in self.overrides:
            if not _matches(pattern, names):
                near = get_close_matches(pattern, names, n=1, cutoff=0.0)
                raise UserError(f"override {pattern!r} matches no layer; the nearest name is {near[0]!r}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values that `from_dict` reads back."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "overrides"}
        overrides = {pattern: value if value == FLOAT else value.to_dict() for pattern, value in self.overrides.items()}
        return {"scheme": self.name, **own, "overrides": overrides}


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
        calibration_images: how many images are read to round fewer than 8 bits such that a layer's errors make up for each
            other (`rounding.py`); 0 rounds every weight to its nearest integer.
    """

    bits: int = 8
    group_size: int = 64
    calibration_images: int = 0

    name: ClassVar[str] = "weight-only"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= self.bits <= 8:
            raise UserError(f"weight-only: bits is {self.bits}; give 2 to 8")
        if self.group_size not in GROUP_SIZES:
            raise UserError(f"weight-only: group_size is {self.group_size}; give {', '.join(map(str, GROUP_SIZES))}")
        if self.calibration_images < 0:
            raise UserError(f"weight-only: calibration_images is {self.calibration_images}; give 0 or more")

    def careful(self) -> Scheme:
        return WeightOnly()


@dataclass(frozen=True)
class Dynamic(Scheme):
    """Linear layers multiply integers, their input's grid being taken when they run; convolutions hold integer weights alone.

    ONNX Runtime's ConvInteger is slower than its float convolution: 10.2 against 1.6 ms for 64 to 64 channels, 3x3, at 60x80,
    and 4.7 against 0.9 ms for 256 to 64, 1x1 (one thread, AVX-512 VNNI). Its integer Linear is faster: 0.8 against 2.7 ms for
    1050x256x1024.
    """

    name: ClassVar[str] = "dynamic"


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
    """

    weight_bits: int = 8
    activation_bits: int = 8
    observer: str = "min-max"
    percentile: float = 99.99
    calibration_images: int = 128

    name: ClassVar[str] = "static"

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("weight_bits", "activation_bits"):
            if not 2 <= getattr(self, option) <= 8:
                raise UserError(f"static: {option} is {getattr(self, option)}; give 2 to 8")
        if self.observer not in OBSERVERS:
            raise unknown("observer", self.observer, OBSERVERS)
        if not 50 < self.percentile <= 100:
            raise UserError(f"static: percentile is {self.percentile}; give more than 50 and at most 100")
        if self.calibration_images < 1:
            raise UserError(f"static: calibration_images is {self.calibration_images}; give 1 or more")


@dataclass(frozen=True)
class SmoothQuant(Scheme):
    """Linear layers whose outlying input channels have been moved into their weights, see `smooth.py`; then as another scheme.

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
        if self.alpha != AUTO and not (isinstance(self.alpha, int | float) and 0 <= self.alpha <= 1):
            raise UserError(f"smoothquant: alpha is {self.alpha}; give 0 to 1, or {AUTO}")
        if self.calibration_images < 1:
            raise UserError(f"smoothquant: calibration_images is {self.calibration_images}; give 1 or more")
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
    """For every layer one of the other schemes, by what it does to that layer's output on calibration images; see `unified.py`.

    Args:
        size: bytes of the tensors, as a share of the float ones, that must be met.
        tolerance: relative squared error of a layer's output that is allowed, in place of a size.
        prefer: of the schemes within the tolerance the fastest arithmetic ("speed"), or the fewest bytes ("size").
        calibration_images: how many images are read from the batches, several times.
    """

    size: float = 0.27
    tolerance: float | None = None
    prefer: str = "speed"
    calibration_images: int = 64

    name: ClassVar[str] = "unified"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.size <= 1:
            raise UserError(f"unified: size is {self.size}; give a share of the float bytes above 0 and at most 1")
        if self.tolerance is not None and self.tolerance <= 0:
            raise UserError(f"unified: tolerance is {self.tolerance}; give more than 0")
        if self.prefer not in ("speed", "size"):
            raise unknown("preference", self.prefer, ("speed", "size"))
        if self.calibration_images < 1:
            raise UserError(f"unified: calibration_images is {self.calibration_images}; give 1 or more")


@dataclass(frozen=True)
class LowBit(Scheme):
    """Linear and Conv2d multiply integers on grids that are trained together with the weights (LSQ, LSQ+; Q-DETR, section 2.2).

    The model that `quantize` gives is at the start of such a training: it computes with rounded numbers and holds float ones;
    `finish` makes integers of them. Projections of the backbone's maps stay float beside the exceptions of all schemes.

    Made for, and tested with, detr, conditional_detr, deformable_detr, smca_detr, swin_detr and rt_detr_v2. The others were
    tried with tiny untrained models: dab_detr, adamixer, rt_detr, d_fine, deimv2, lw_detr, rf_detr and two-stage Deformable
    DETR get gradients in every parameter and are saved and finished; none of them has been trained to an accuracy. The operands
    of attention are reached everywhere in detr, conditional_detr, smca_detr and adamixer (its mixing stays float); in dab_detr
    nowhere; in the others not in deformable attention and in transformer backbones, as the record's `summary()` says.

    Args:
        bits: of weights, of the inputs of layers, and of the operands of attention, as "4-4-8"; "4" means "4-4-8". 2 to 8
            each. An override's bits hold for the layers (and attentions) that its pattern matches.
        attention: bits of single operands, "q", "k", "v" and "softmax", where they are others.
        first_convolution: bits of the first convolution's weights and input.
        part: "all", or "backbone", which leaves encoder and decoder float: the first of Q-DETR's two stages.
        calibration_images: how many images the steps are initialised with, by the least squared rounding error.
    """

    bits: str = "4-4-8"
    attention: Mapping[str, int] = field(default_factory=dict)
    first_convolution: int = 8
    part: str = "all"
    calibration_images: int = 128

    name: ClassVar[str] = "low-bit"
    default_float: ClassVar[Mapping[str, str]] = DEFAULT_FLOAT | {"*input_proj*": "projection of the backbone's maps"}

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", str(self.bits))
        widths = self.bits.split("-")
        if len(widths) == 1:
            widths = [*widths * 2, "8"]
        if len(widths) != 3 or not all(width in "2345678" and len(width) == 1 for width in widths):
            raise UserError(
                f"low-bit: bits is {self.bits!r}; give those of weights, activations and attention as 4-4-8, each from 2 to 8, "
                "or one number"
            )
        object.__setattr__(self, "bits", "-".join(widths))
        for operand, width in self.attention.items():
            if operand not in OPERANDS:
                raise unknown("operand of attention", operand, OPERANDS)
            _check_bits(f"attention.{operand}", width)
        _check_bits("first_convolution", self.first_convolution)
        if self.part not in PARTS:
            raise unknown("part", self.part, PARTS)
        if self.calibration_images < 1:
            raise UserError(f"low-bit: calibration_images is {self.calibration_images}; give 1 or more")
        super().__post_init__()

    @property
    def weight_bits(self) -> int:
        return int(self.bits.split("-")[0])

    @property
    def activation_bits(self) -> int:
        return int(self.bits.split("-")[1])

    def operand_bits(self, operand: str) -> int:
        """Of one of `OPERANDS`."""
        return self.attention.get(operand, int(self.bits.split("-")[2]))


OPERANDS = ("q", "k", "v", "softmax")
PARTS = ("all", "backbone")


def _check_bits(option: str, bits: int) -> None:
    if bits not in range(2, 9):
        raise UserError(f"low-bit: {option} is {bits}; give 2 to 8")


SCHEMES: dict[str, type[Scheme]] = {
    scheme.name: scheme for scheme in (WeightOnly, Dynamic, Static, SmoothQuant, Unified, LowBit)
}


def scheme_config(name: str, **options: Any) -> Scheme:
    """A scheme by its name.

    >>> scheme_config("static", observer="mse").observer
    'mse'

    Raises UserError for an unknown scheme or option, with the nearest one, and for a value out of range.
    """
    if name not in SCHEMES:
        raise unknown("scheme", name, SCHEMES)
    known = [f.name for f in fields(SCHEMES[name])]
    for option in options:
        if option not in known:
            raise unknown(f"option of scheme {name}", option, known)
    return SCHEMES[name](**options)


def calibration_images(scheme: Scheme) -> int:
    """How many images a scheme and its overrides ask for; 0 where nothing is calibrated."""
    return max(getattr(setting, "calibration_images", 0) for setting in (scheme, *scheme.overrides.values()))


def from_dict(values: Mapping[str, Any]) -> Scheme:
    """A scheme from a mapping with the key `scheme` and the scheme's options."""
    if "scheme" not in values:
        raise UserError(f"a quantization setting lacks the key scheme; give one of {', '.join(SCHEMES)}")
    return scheme_config(values["scheme"], **{key: value for key, value in values.items() if key != "scheme"})


def _matches(pattern: str, names: list[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names)
