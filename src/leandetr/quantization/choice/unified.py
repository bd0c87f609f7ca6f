"""One scheme of schemes. The rule: a layer gets the cheapest candidate whose error is within the tolerance, or stays float.

A layer's error under a candidate is measured with all else float (`sensitivity.py`). Cheapest is the fastest arithmetic and
then the fewest bytes, or the reverse. One tolerance holds for all layers: the given one, or the smallest with which the model's
bytes meet the given size; only the measured errors need be tried. Operands of attention, where asked for, follow its layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain

from transformers import PreTrainedModel

from leandetr.detectors.attention import open_attention, unopened_attention
from leandetr.detectors.detector import Detector
from leandetr.errors import UserError
from leandetr.quantization.choice.sensitivity import Errors, bytes_of, measure_layers
from leandetr.quantization.config import AUTO, FLOAT, Dynamic, Scheme, SmoothQuant, Static, Unified, WeightOnly
from leandetr.quantization.passes.apply import apply
from leandetr.quantization.passes.operands import SLOT_OF
from leandetr.structures import Batch

#: candidates from the fastest arithmetic to the slowest
FASTEST_FIRST = ("static", "smoothquant", "dynamic", "weight-only", "4 bits")
ON_GRIDS = {"static", "smoothquant"}


def candidates(images: int) -> dict[str, Scheme]:
    """What a layer may become, calibrated with so many images."""
    return {
        "static": _static(images),
        "smoothquant": SmoothQuant(activations="static", alpha=AUTO, observer="mse", calibration_images=images),
        "dynamic": Dynamic(),
        "weight-only": WeightOnly(),
        "4 bits": WeightOnly(bits=4, calibration_images=images),
    }


def _static(images: int, attention: bool = False) -> Static:
    return Static(observer="mse", calibration_images=images, attention=attention)


def quantize_unified(detector: Detector, config: Unified, batches: Iterable[Batch]) -> Detector:
    """As `quantize`; layers of the overrides are as these say, and count in the size. Raises UserError where no tolerance meets
    it."""
    schemes = candidates(config.calibration_images)
    errors, sizes = measure_layers(detector, schemes, batches)
    plain = apply(detector, WeightOnly(overrides={"*": FLOAT, **config.overrides}), batches)
    free = {layer: found for layer, found in errors.items() if not config.overridden(layer)}
    floats = {layer: bytes_of(plain.model.get_submodule(layer)) for layer in free}
    rest = bytes_of(plain.model) - sum(floats.values())
    tolerance = config.tolerance
    if tolerance is None:
        tolerance = _smallest_tolerance(free, sizes, floats, rest, config, bytes_of(detector.model))
    chosen = choose(free, sizes, tolerance, config.prefer)
    settings = {layer: FLOAT if name is None else schemes[name] for layer, name in chosen.items()}
    if config.attention:
        attentions = _attentions_on_grids(plain.model, config, chosen, errors)
        settings |= dict.fromkeys(attentions, _static(config.calibration_images, attention=True))
    quantized = apply(detector, WeightOnly(overrides=settings | dict(config.overrides)), batches, by_layer=True)
    record = quantized.config.quantization_config
    record.scheme = config.to_dict() | {"tolerance": tolerance}
    record.left_float |= {layer: "every scheme errs beyond the tolerance" for layer, name in chosen.items() if name is None}
    if config.attention:
        names = [*open_attention(plain.model), *unopened_attention(plain.model)]
        left = [name for name in names if f"{name}.slots.{SLOT_OF['q']}" not in record.activations]
        record.left_float |= dict.fromkeys(left, "operands of attention, not open or not all of its layers on calibrated grids")
    return quantized


def _attentions_on_grids(
    model: PreTrainedModel, config: Unified, chosen: Mapping[str, str | None], layers: Iterable[str]
) -> list[str]:
    """The attentions that can be opened, all of whose layers are on calibrated grids, by choice or by an override."""

    def on_grid(layer: str) -> bool:
        setting, _ = config.setting([layer])
        return chosen[layer] in ON_GRIDS if setting is config else isinstance(setting, Static)

    found = []
    for name in open_attention(model):
        inside = [layer for layer in layers if layer.startswith(f"{name}.")]
        if inside and all(map(on_grid, inside)):
            found.append(name)
    return found


def choose(errors: Errors, sizes: Mapping[str, Mapping[str, int]], tolerance: float, prefer: str) -> dict[str, str | None]:
    """Layer -> its candidate, None for float."""

    def cost(layer: str, name: str) -> tuple[int, int]:
        speed, size = FASTEST_FIRST.index(name), sizes[layer][name]
        return (size, speed) if prefer == "size" else (speed, size)

    return {
        layer: min(
            (name for name, error in found.items() if error <= tolerance), key=lambda name: cost(layer, name), default=None
        )
        for layer, found in errors.items()
    }


def _smallest_tolerance(
    errors: Errors,
    sizes: Mapping[str, Mapping[str, int]],
    floats: Mapping[str, int],
    rest: int,
    config: Unified,
    float_bytes: int,
) -> float:
    def share(tolerance: float) -> float:
        chosen = choose(errors, sizes, tolerance, config.prefer)
        return (
            rest + sum(floats[layer] if name is None else sizes[layer][name] for layer, name in chosen.items())
        ) / float_bytes

    shares = {error: share(error) for error in chain.from_iterable(found.values() for found in errors.values())}
    within = [error for error, size in shares.items() if size <= config.size]
    if not within:
        raise UserError(
            f"unified: no choice of schemes makes the model {config.size} as large; the smallest is {min(shares.values()):.3f}"
        )
    return min(within)
