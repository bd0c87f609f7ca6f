"""What all schemes share, and how a scheme is named, read and written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, ClassVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from leandetr.errors import UserError, unknown
from leandetr.quantization.grids import BITS, GridSetting

FLOAT = "float"

#: layers that cannot hold integers, and why
ALWAYS_FLOAT = {"*patch_embeddings.projection": "its caller reads the type of the weight"}

#: operands of attention: query, key, value, and the probabilities that weigh the values
OPERANDS = ("q", "k", "v", "softmax")

#: name -> scheme; a scheme enters itself where it is defined
SCHEMES: dict[str, type[Scheme]] = {}


@dataclass(frozen=True)
class Scheme:
    """What all schemes share.

    Args:
        overrides: layer-name pattern (`*`, `?`, `[...]`; `*` also crosses dots) -> "float", a scheme's name (the scheme's own
            name means its own options), a scheme, or a scheme as a mapping. Of several patterns that match a layer the last
            one counts; they also outrank the default exceptions.

    Raises:
        UserError: an option of another type, a number of bits out of range, an unknown scheme or option, an override that
            holds overrides.
    """

    overrides: Mapping[str, Any] = field(default_factory=dict)

    name: ClassVar[str]
    #: pattern -> reason: layers that stay float beside those that the families name
    also_float: ClassVar[Mapping[str, str]] = {}
    trained: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        SCHEMES[cls.name] = cls

    def __post_init__(self) -> None:
        kinds = get_type_hints(type(self))
        for option in fields(self):
            value = getattr(self, option.name)
            try:
                TypeAdapter(kinds[option.name]).validate_python(value, strict=True)
            except ValidationError as error:
                raise UserError(f"{self.name}: {option.name} is {value!r}; give {_in_words(str(option.type))}") from error
        settings = {pattern: self._setting(pattern, value) for pattern, value in self.overrides.items()}
        object.__setattr__(self, "overrides", settings)

    def _require(self, holds: bool, option: str, give: str, value: Any = None) -> None:
        """Raises UserError for an option out of range. value: where it is not the attribute of that name."""
        if not holds:
            value = getattr(self, option) if value is None else value
            raise UserError(f"{self.name}: {option} is {value}; give {give}")

    def _require_bits(self, option: str, value: int) -> None:
        self._require(value in BITS, option, f"{BITS[0]} to {BITS[-1]}", value)

    def _require_images(self, images: int, least: int = 1) -> None:
        self._require(images >= least, "calibration_images", f"{least} or more")

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
        if value.trained != self.trained:
            raise UserError(
                f"override {pattern}: {value.name} inside {self.name}, but low-bit layers are trained and others are not; for "
                "8 bits inside low-bit give {scheme: low-bit, bits: 8-8-8}"
            )
        return value

    def setting(self, names: list[str]) -> tuple[Scheme | None, str]:
        """How a layer known under `names` is quantized, None for float, and the reason."""
        from leandetr.detectors.families.registry import float_layers  # a scheme is read and written without the families

        found: tuple[Scheme | None, str] = (self, self.name)
        for pattern, reason in {**float_layers(), **self.also_float}.items():
            if _matches(pattern, names):
                found = (self.careful(), reason)
        for pattern, reason in ALWAYS_FLOAT.items():
            if _matches(pattern, names):
                found = (None, reason)
        for pattern, value in self.overrides.items():
            if _matches(pattern, names):
                found = (None if value == FLOAT else value, f"override {pattern}")
        return found

    def overridden(self, layer: str) -> bool:
        """Whether a pattern of the overrides decides how the layer is quantized."""
        return any(_matches(pattern, [layer]) for pattern in self.overrides)

    def careful(self) -> Scheme | None:
        """What the default exceptions get, whose arithmetic is float; None for float weights, too."""
        return None

    def operand(self, name: str) -> GridSetting | None:
        """How the grid of an operand of attention, one of `OPERANDS`, is found; None where it stays float."""
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


def _in_words(kind: str) -> str:
    """A field's type as a user would say it."""
    words = {"int": "a whole number", "float": "a number", "str": "a word", "bool": "true or false", "None": "nothing"}
    return " or ".join(words.get(part, "names with their values") for part in kind.split(" | "))


def _matches(pattern: str, names: list[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names)
