"""One verb: `quantize(detector, config, calibration_batches)` gives a detector whose layers hold integers.

The order: decide for every layer, fold BatchNorm, smooth, place the static grids, calibrate them on the float model, replace
the layers. The result evaluates, saves, loads and exports like any other detector.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor, nn

from leandetr.detectors.detector import Detector
from leandetr.errors import UserError
from leandetr.quantization.checkpoint import QuantizationRecord, attach, build
from leandetr.quantization.config import Dynamic, LowBit, Scheme, SmoothQuant, Static, Unified, WeightOnly
from leandetr.quantization.layers.groups import group_size_of
from leandetr.quantization.layers.modules import DYNAMIC_INPUT, GRID_INPUT, ROWS_INPUT, LayerPlan, is_quantizable, names_of
from leandetr.quantization.layers.rounding import InputMoment
from leandetr.quantization.layers.trainable import TrainableLayer
from leandetr.quantization.passes.flow import watch
from leandetr.quantization.passes.fold import fold_batch_norms, merge_parallel
from leandetr.quantization.passes.observers import Observer, grid_of, observer_of
from leandetr.quantization.passes.operands import operand_settings
from leandetr.quantization.passes.placement import Placement, place
from leandetr.quantization.passes.smooth import smooth
from leandetr.quantization.training.finish import place_trained
from leandetr.structures import Batch


def quantize(detector: Detector, config: Scheme, calibration_batches: Iterable[Batch] = ()) -> Detector:
    """A quantized copy of a detector; the float one stays as it is.

    Args:
        detector: a float detector.
        config: one of the schemes of `config.py`.
        calibration_batches: batches as the detector takes them, read no further than the scheme's `calibration_images`, and
            once, but twice by `SmoothQuant` with static grids and often by `Unified`, which want a list or a loader;
            `WeightOnly` and `Dynamic` need none. Memory does not depend on their number.

    Returns:
        The quantized detector in evaluation mode; with `LowBit` it is one to train, of which `finish` makes integers. Its
        `config.quantization_config` records what was done, and `summary()` of that says how many layers were quantized, and
        which stayed float or hold more bits than asked for, and why.

    Raises:
        UserError: the detector is quantized already; a layer pattern matches nothing; calibration images are missing, fewer
            than asked, or all empty; a layer's values are not finite.

    Example:
        >>> small = quantize(detector, Static(calibration_images=64), loader)      # doctest: +SKIP
        >>> print(small.config.quantization_config.summary())                      # doctest: +SKIP
    """
    before = getattr(detector.config, "quantization_config", None)
    if before is not None and not (isinstance(config, LowBit) and before.trainable):
        raise UserError("the model is quantized already; give the float model that it was made from")
    if isinstance(config, Unified):
        from leandetr.quantization.choice.unified import quantize_unified  # it quantizes with every candidate first

        return quantize_unified(detector, config, calibration_batches)
    detector = copy.deepcopy(detector).eval()
    model, (pixels, mask) = detector.model, _blank(detector)
    with torch.no_grad():
        folds = fold_batch_norms(model, lambda: model(pixel_values=pixels, pixel_mask=mask))
    merges = {} if isinstance(config, LowBit) else merge_parallel(model)  # training wants the blocks as they are trained
    settings, operands, left_float, kept_wide = _decide(detector, config)
    smoothed = {layer: setting for layer, setting in settings.items() if isinstance(setting, SmoothQuant)}
    settings |= {layer: setting.after() for layer, setting in smoothed.items()}
    smoothed = {layer: setting for layer, setting in smoothed.items() if isinstance(layer, nn.Linear)}
    static = {layer: setting for layer, setting in settings.items() if isinstance(setting, Static | LowBit)}
    moments = {layer: InputMoment(layer) for layer, setting in settings.items() if _learns_rounding(layer, setting)}
    calibrated = [*(settings[layer] for layer in (*static, *moments)), *operands.values()]
    asked = max((setting.calibration_images for setting in (*calibrated, *smoothed.values())), default=0)
    images = _images(calibration_batches, asked, next(model.parameters()).device)
    first = next(images) if asked else (pixels, mask)

    def run() -> None:
        model(pixel_values=first[0][:1], pixel_mask=first[1][:1])

    with torch.no_grad():
        factors = smooth(model, smoothed, run, chain([first], images)) if smoothed else {}
        if smoothed and calibrated:
            images = _images(calibration_batches, asked, next(model.parameters()).device)
            first = next(images)
        if isinstance(config, LowBit):
            placement, static = place_trained(model, static, run)
        else:
            placement = place(model, static, run) if static else Placement()
        if operands:
            runs = watch(operands, run).sources
            placement.activations |= {slot: setting for slot, setting in operands.items() if slot in runs}
        grids = _calibrate(model, static, placement, moments, chain([first], images)) if calibrated else Grids({}, {})

    names = names_of(model)
    for layer in placement.idle:
        del settings[layer]
        left_float[names[layer][0]] = "does not run on images"
    plans = {layer: placement.plans.get(layer) or _plain_plan(layer, setting) for layer, setting in settings.items()}
    plans |= {layer: replace(plans[layer], smoothed=True) for layer in factors}
    record = QuantizationRecord(
        scheme=config.to_dict(),
        folds=folds,
        layers={names[layer][0]: plan.to_dict() for layer, plan in plans.items()},
        activations={names[module][0]: setting.activation_bits for module, setting in placement.activations.items()},
        left_float=left_float,
        trainable=isinstance(config, LowBit),
        kept_wide=kept_wide,
        merges=merges,
    )
    if before is not None:
        record.folds, record.layers = before.folds | folds, before.layers | record.layers
    replaced = build(model, record)
    grids.fill(replaced)
    for layer in plans:
        replaced[layer].fill(layer, *(moments[layer],) if layer in moments else ())
    for layer, factor in factors.items():
        replaced[layer].input_factor.copy_(factor)
    attach(model, record)
    return detector


@dataclass
class Grids:
    """Scale and zero point of the grids on the inputs and outputs of modules of the float model."""

    inputs: dict[nn.Module, tuple[Tensor, Tensor]]
    outputs: dict[nn.Module, tuple[Tensor, Tensor]]

    def fill(self, replaced: dict[nn.Module, nn.Module]) -> None:
        """Set the grids of the modules that have replaced the float ones."""
        for side, grids in (("input", self.inputs), ("output", self.outputs)):
            for module, (scale, zero_point) in grids.items():
                getattr(replaced[module], side).set(scale, zero_point)


def _calibrate(
    model: nn.Module,
    static: dict[nn.Module, Static],
    placement: Placement,
    moments: dict[nn.Module, InputMoment],
    images: Iterable[tuple[Tensor, Tensor]],
) -> Grids:
    """Observe the float model on the calibration images: sum the moments, and choose the grids."""
    inputs = {layer: static[layer] for layer, plan in placement.plans.items() if plan.input == GRID_INPUT}
    outputs = {layer: static[layer] for layer, plan in placement.plans.items() if plan.output_bits is not None}
    outputs |= placement.activations
    input_observers = {module: observer_of(setting) for module, setting in inputs.items()}
    output_observers = {module: observer_of(setting) for module, setting in outputs.items()}
    handles = [module.register_forward_pre_hook(_reader(input_observers)) for module in inputs]
    handles += [module.register_forward_pre_hook(_reader(moments)) for module in moments]
    handles += [module.register_forward_hook(_reader(output_observers)) for module in outputs]
    try:
        for pixels, mask in images:
            model(pixel_values=pixels, pixel_mask=mask)
    finally:
        for handle in handles:
            handle.remove()
    grids = Grids(_chosen(input_observers, inputs), _chosen(output_observers, outputs))
    grids.inputs |= {layer: grids.outputs[source] for layer, source in placement.sources.items()}
    return grids


def _reader(observers: Mapping[nn.Module, Observer | InputMoment]) -> Callable[..., None]:
    """A hook that shows a module's input, or its output in a forward hook, to the module's observer."""

    def read(module: nn.Module, inputs: tuple, output: Tensor | None = None) -> None:
        x = inputs[0] if output is None else output
        if not torch.isfinite(x).all():
            raise UserError(f"a {type(module).__name__} of the model gives values that are not finite; check its weights")
        observers[module].update(x)

    return read


def _chosen(observers: dict[nn.Module, Observer], settings: dict[nn.Module, Static]) -> dict[nn.Module, tuple[Tensor, Tensor]]:
    return {module: grid_of(*observer.range(), settings[module].activation_bits) for module, observer in observers.items()}


def _decide(
    detector: Detector, config: Scheme
) -> tuple[dict[nn.Module, Scheme], dict[nn.Module, Static], dict[str, str], dict[str, str]]:
    """Every layer's setting; those of operands of attention; names and reasons of the layers with weights, and attentions, that
    stay float; and of the layers with more bits than were asked for. What an earlier stage of a low-bit training has quantized
    is in none."""
    settings, left_float, kept_wide, model = {}, {}, {}, detector.model
    operands, operands_left_float, layer_names = operand_settings(model, config)
    later = isinstance(config, LowBit) and config.part == "backbone"
    backbone = set(detector.family.backbone(model).modules()) if later else set()
    for module, names in names_of(model).items():
        if isinstance(module, TrainableLayer):
            layer_names += names
        elif is_quantizable(module):
            layer_names += names
            setting, reason = config.setting(names)
            if setting is None:
                left_float[names[0]] = reason
            elif later and module not in backbone:
                left_float[names[0]] = "left to the second stage"
            else:
                settings[module] = setting
            if isinstance(setting, WeightOnly):
                if not reason.startswith("override") and setting != config:
                    kept_wide[names[0]] = reason
                elif setting.bits < 8 and group_size_of(module, setting.group_size) is None:
                    kept_wide[names[0]] = f"{module.weight.shape[1]} inputs have no group of 16 or more"
        elif any(parameter.ndim > 1 for parameter in module.parameters(recurse=False)):
            left_float[names[0]] = f"{type(module).__name__}, neither a plain Linear nor a plain Conv2d"
    config.check_overrides(layer_names)
    return settings, operands, left_float | operands_left_float, kept_wide


def _plain_plan(layer: nn.Module, setting: Scheme) -> LayerPlan:
    """The plan of a layer without calibrated grids."""
    if isinstance(setting, Dynamic) and isinstance(layer, nn.Linear):
        return LayerPlan(input=ROWS_INPUT if setting.per_row else DYNAMIC_INPUT)
    group_size = _group_size(layer, setting)
    return LayerPlan() if group_size is None else LayerPlan(weight_bits=setting.bits, group_size=group_size)


def _group_size(layer: nn.Module, setting: Scheme) -> int | None:
    """Of a layer whose weights are in groups."""
    return group_size_of(layer, setting.group_size) if isinstance(setting, WeightOnly) and setting.bits < 8 else None


def _learns_rounding(layer: nn.Module, setting: Scheme) -> bool:
    return _group_size(layer, setting) is not None and setting.calibration_images > 0 and InputMoment.possible(layer)


def _images(batches: Iterable[Batch], asked: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Pixel values and masks of exactly `asked` images, batch by batch."""
    found, content = 0, False
    for batch in batches:
        pixels, mask = (batch[key][: asked - found].to(device) for key in ("pixel_values", "pixel_mask"))
        found += len(pixels)
        content = content or _has_content(pixels, mask)
        if found == asked and not content:
            raise UserError(
                f"all {asked} calibration images are empty (every pixel alike); give images like those to be detected on"
            )
        if len(pixels):
            yield pixels, mask
        if found == asked:
            return
    if found == 0:
        raise UserError("this scheme needs calibration images and there are none; give images of the training split")
    raise UserError(f"{asked} calibration images were asked for and there are {found}; give more or lower calibration_images")


def _has_content(pixels: Tensor, mask: Tensor) -> bool:
    """Whether some channel of some image differs from pixel to pixel, padding (right and bottom) left out."""
    real = torch.where(mask[:, None].bool(), pixels, pixels[:, :, :1, :1])
    return bool((real.amax((2, 3)) > real.amin((2, 3))).any())


def _blank(detector: Detector) -> tuple[Tensor, Tensor]:
    """One image to run the model on where only the order of its modules matters."""
    height, width = detector.preprocessing.size or (256, 256)
    device = next(detector.parameters()).device
    return torch.zeros(1, 3, height, width, device=device), torch.ones(1, height, width, dtype=torch.long, device=device)
