"""One scheme done to one detector.

The order: fold BatchNorm, decide for every layer, smooth, place the static grids, calibrate them on the float model, round
weights that are stored alone by what it does to detections, replace the layers.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TypeGuard, TypeVar

import torch
from torch import nn

from leandetr.detectors.detector import Detector
from leandetr.errors import UserError
from leandetr.quantization.checkpoint import QuantizationRecord, attach, build
from leandetr.quantization.config import Dynamic, LowBit, Scheme, Static, WeightOnly
from leandetr.quantization.grids import GridSetting
from leandetr.quantization.layers.groups import group_size_of
from leandetr.quantization.layers.modules import DYNAMIC_INPUT, ROWS_INPUT, LayerPlan, QuantizedLayer, names_of
from leandetr.quantization.layers.rounding import InputMoment
from leandetr.quantization.layers.trainable import TrainableLayer
from leandetr.quantization.passes.calibrate import CalibrationImages, Grids, blank, calibrate
from leandetr.quantization.passes.decide import decide
from leandetr.quantization.passes.flow import watch
from leandetr.quantization.passes.fold import fold_batch_norms, merge_parallel
from leandetr.quantization.passes.placement import Placement, place, place_trained
from leandetr.quantization.passes.reconstruct import reconstruct_groups, round_groups
from leandetr.quantization.passes.smooth import smooth
from leandetr.structures import Batch

S = TypeVar("S", bound=Scheme)


@torch.no_grad()
def apply(detector: Detector, config: Scheme, calibration_batches: Iterable[Batch] = (), by_layer: bool = False) -> Detector:
    """`quantize`, for the schemes that decide by name and not by measurement. by_layer: weights in groups are rounded by what
    that does to their own layer's output, as long as the others' schemes are not known, and not to detections."""
    training = isinstance(config, LowBit)
    before = getattr(detector.config, "quantization_config", None)
    if before is not None and not (training and before.trainable):
        raise UserError("the model is quantized already; give the float model that it was made from")
    detector = copy.deepcopy(detector).eval()
    model, (pixels, mask) = detector.model, blank(detector)
    folds = fold_batch_norms(model, lambda: model(pixel_values=pixels, pixel_mask=mask))
    merges = {} if training else merge_parallel(model)  # training wants the blocks as they are trained
    decision = decide(detector, config)
    rounded = {layer: setting for layer, setting in decision.settings.items() if _learns_rounding(setting, layer)}
    moments: dict[nn.Module, InputMoment] = {layer: InputMoment(layer) for layer in rounded}
    static, trained = _of_kind(Static, decision.settings), _of_kind(LowBit, decision.settings)
    calibrated: list[Static | LowBit | WeightOnly | GridSetting]
    calibrated = [*static.values(), *trained.values(), *rounded.values(), *decision.operands.values()]
    asked = max((setting.calibration_images for setting in (*calibrated, *decision.smoothed.values())), default=0)
    images = CalibrationImages(calibration_batches, asked, detector)

    def run() -> None:
        pixels, mask = images.first
        model(pixel_values=pixels[:1], pixel_mask=mask[:1])

    factors = smooth(model, decision.smoothed, run, images) if decision.smoothed else {}
    placement = Placement()
    if trained:
        placement = place_trained(model, trained, run)
    elif static:
        placement = place(model, static, run)
    if decision.operands:
        runs = watch(decision.operands, run).sources
        placement.add_activations({slot: setting for slot, setting in decision.operands.items() if slot in runs})
    grids = calibrate(model, placement, moments, images) if calibrated else Grids({}, {})
    in_groups = {layer: _plain_plan(layer, setting) for layer, setting in rounded.items()}
    chosen = round_groups(in_groups, moments) if by_layer else reconstruct_groups(detector, in_groups, moments, images)

    names = names_of(model)
    plans = {
        layer: placement.plans.get(layer) or _plain_plan(layer, setting)
        for layer, setting in decision.settings.items()
        if layer not in placement.idle
    }
    plans |= {layer: replace(plans[layer], smoothed=True) for layer in factors}
    idle = {names[layer][0]: "does not run on images" for layer in decision.settings if layer in placement.idle}
    record = QuantizationRecord(
        scheme=config.to_dict(),
        folds=folds,
        layers={names[layer][0]: plan.to_dict() for layer, plan in plans.items()},
        activations={names[module][0]: setting.bits for module, setting in placement.activations.items()},
        left_float=decision.left_float | idle,
        trainable=training,
        kept_wide=decision.kept_wide,
        merges=merges,
    )
    if before is not None:
        record.folds, record.layers = before.folds | folds, before.layers | record.layers
    replaced = build(model, record)
    grids.fill(replaced)
    _fill({layer: replaced[layer] for layer in plans}, chosen, factors)
    attach(model, record)
    return detector


def _of_kind(kind: type[S], settings: Mapping[nn.Linear | nn.Conv2d, Scheme]) -> dict[nn.Module, S]:
    return {layer: setting for layer, setting in settings.items() if isinstance(setting, kind)}


def _fill(
    replaced: Mapping[nn.Linear | nn.Conv2d, nn.Module],
    chosen: Mapping[nn.Linear | nn.Conv2d, tuple[torch.Tensor, torch.Tensor]],
    factors: Mapping[nn.Linear, torch.Tensor],
) -> None:
    """Give the new layers the weights of those that they replace. chosen: integers and scales of groups."""
    for layer, new in replaced.items():
        if isinstance(new, QuantizedLayer):
            new.fill(layer, chosen.get(layer))
            if isinstance(layer, nn.Linear) and layer in factors:
                new.input_factor.copy_(factors[layer])
        elif isinstance(new, TrainableLayer):
            new.fill(layer)


def _plain_plan(layer: nn.Linear | nn.Conv2d, setting: Scheme) -> LayerPlan:
    """The plan of a layer without calibrated grids."""
    if isinstance(setting, Dynamic) and isinstance(layer, nn.Linear):
        return LayerPlan(input=ROWS_INPUT if setting.per_row else DYNAMIC_INPUT)
    if isinstance(setting, WeightOnly) and (group_size := _group_size(layer, setting)) is not None:
        return LayerPlan(weight_bits=setting.bits, group_size=group_size)
    return LayerPlan()


def _group_size(layer: nn.Linear | nn.Conv2d, setting: WeightOnly) -> int | None:
    """Of a layer whose weights are in groups."""
    return group_size_of(layer, setting.group_size) if setting.bits < 8 else None


def _learns_rounding(setting: Scheme, layer: nn.Linear | nn.Conv2d) -> TypeGuard[WeightOnly]:
    if not isinstance(setting, WeightOnly) or _group_size(layer, setting) is None:
        return False
    return setting.calibration_images > 0 and InputMoment.possible(layer)
