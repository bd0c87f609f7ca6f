"""Rounding chosen by what it does to detections, on images without labels.

A rounded detector answers the same images as the float one that it was made from, and what it rounds to is moved where its
answers come nearer to the float ones. With memory tokens M and the decoder's states H of all layers, query i's class
probabilities p, boxes b and w_i = max_c p_i of the float answer, 0 where that is below 0.05, in units of their sum,

    |M' - M|^2 / |M|^2 + |H' - H|^2 / |H|^2 + mean_i KL(p_i || p'_i)
        + sum_i w_i [ KL(p_i || p'_i) + 5 |b'_i - b_i|_1 + 2 (1 - GIoU(b'_i, b_i)) ]

KL being summed over classes (over the two outcomes of each, with a sigmoid head). So an object counts as much as the detector
is sure of it, as in DetPTQ (Niu et al., "Improving Post-Training Quantization on Object Detection with Task Loss-Guided Lp
Metric", 2023), and the rest is reconstruction of intermediate answers, as in BRECQ (Li et al., ICLR 2021). Weights pass their
rounding straight through, steps as in LSQ (`layers/lsq.py`). Where queries are chosen among the encoder's cells, the rounded
decoder is given those that the float one has chosen: so answers belong together one to one.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import register_parametrization, remove_parametrizations

from leandetr.detectors.detector import Detector
from leandetr.heads import Head
from leandetr.losses import box_losses
from leandetr.progress import counting
from leandetr.quantization.layers.groups import GroupRounding, quantize_groups
from leandetr.quantization.layers.modules import LayerPlan
from leandetr.quantization.layers.rounding import InputMoment, round_weights, within_steps
from leandetr.quantization.layers.trainable import LearnedGrid, TrainableLayer
from leandetr.quantization.passes.calibrate import CalibrationImages, Images, observe
from leandetr.structures import DetectorOutput

Layer = nn.Linear | nn.Conv2d
Chosen = dict[Layer, tuple[Tensor, Tensor]]
M = TypeVar("M", bound=nn.Module)

STEPS = 512
JUDGES = 32
IMAGES = 2  # a step: the answers differ little from image to image, so many small steps are worth more than few large ones
WEIGHT_RATE = 2e-3  # of the mean step of a layer's weights
WARM_UP = 0.1  # of the steps: Adam's first ones are as large as its last, whatever the gradients
GRID_RATE = 1e-2  # of steps and zero points, see `layers/trainable.py`
L1_WEIGHT, GIOU_WEIGHT = 5.0, 2.0
LEAST_SURE = 0.05  # of a query that counts as an object: where the others lie is not to steer


def reconstruct_grids(rounded: Detector, original: Detector, images: CalibrationImages) -> None:
    """Choose the integers and the grids of a detector at the start of low-bit training, in place: first the integers of every
    layer by its own output, then all by what they do to detections."""
    round_layers(rounded, images)
    rates = {parameter: GRID_RATE for grid in _of(LearnedGrid, rounded) for parameter in grid.parameters()}
    for layer in _of(TrainableLayer, rounded):
        rate = WEIGHT_RATE * layer.weight_grid.step.mean().item()
        rates |= dict.fromkeys(layer.parameters(recurse=False), rate)
    reconstruct(rounded, original, rates, images)


@torch.no_grad()
def round_layers(rounded: Detector, images: Iterable[Images]) -> None:
    """Move the weights of fewer than 8 bits so that each layer's rounding errors make up for each other, in place."""
    layers = [layer for layer in _of(TrainableLayer, rounded) if layer.plan.weight_bits < 8 and InputMoment.possible(layer)]
    moments = [(layer, InputMoment(cast("Layer", layer))) for layer in layers]
    observe(rounded.model, images, moments)
    with counting("layers rounded", len(moments)) as one_more:
        for layer, moment in moments:
            step = layer.weight_grid.step.expand_as(layer.weight)
            integers = round_weights(layer.weight, step, layer.plan.weight_bits, moment.matrix)
            layer.weight.copy_(within_steps(layer.weight, step, integers))
            one_more()


@torch.no_grad()
def round_groups(plans: Mapping[Layer, LayerPlan], moments: Mapping[nn.Module, InputMoment]) -> Chosen:
    """Integers and scales, as of `quantize_groups`, for layers whose weights are in groups, each by its own output alone."""
    chosen = {}
    with counting("layers rounded", len(plans)) as one_more:
        for layer, plan in plans.items():
            assert plan.group_size is not None
            chosen[layer] = quantize_groups(layer.weight, plan.weight_bits, plan.group_size, moments[layer])
            one_more()
    return chosen


@torch.no_grad()
def reconstruct_groups(
    detector: Detector,
    plans: Mapping[Layer, LayerPlan],
    moments: Mapping[nn.Module, InputMoment],
    images: CalibrationImages,
) -> Chosen:
    """As `round_groups`, begun with what that chooses, for layers of a float detector, whose biases are moved along."""
    if not plans:
        return {}
    original, begun = copy.deepcopy(detector), round_groups(plans, moments)
    rounding: dict[Layer, GroupRounding] = {}
    latent: dict[Layer, Tensor] = {}
    rates: dict[nn.Parameter, float] = {}
    for layer, (integers, scale) in begun.items():
        rounding[layer] = GroupRounding(scale, plans[layer].weight_bits)
        layer.weight.copy_(rounding[layer].begin(layer.weight, integers))
        latent[layer] = layer.weight
        register_parametrization(layer, "weight", rounding[layer], unsafe=True)
        rates |= dict.fromkeys(layer.parameters(), WEIGHT_RATE * scale.float().mean().item())
    reconstruct(detector, original, rates, images)
    for layer in begun:
        remove_parametrizations(layer, "weight")
    return {layer: (rounding[layer].integers(latent[layer]), scale) for layer, (_, scale) in begun.items()}


@torch.enable_grad()
def reconstruct(rounded: Detector, original: Detector, rates: Mapping[nn.Parameter, float], images: CalibrationImages) -> None:
    """Move parameters of a detector that rounds as it runs, in place, until it answers more as the float one does. Where it
    does not on the first `JUDGES` images, they stay as they are.

    Args:
        rounded, original: of the same architecture, in evaluation mode.
        rates: parameter of `rounded` that moves -> how far at most in a step.
        images: read again and again, `IMAGES` a step.
    """
    before, begun = _mean_distance(rounded, original, images), [parameter.detach().clone() for parameter in rates]
    optimizer = torch.optim.Adam([{"params": [parameter], "lr": rate} for parameter, rate in rates.items()])
    warm = STEPS * WARM_UP
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / warm) * (1 + math.cos(math.pi * step / STEPS)) / 2
    )
    with counting("steps of rounding", STEPS) as one_more:
        for pixels, mask in islice(_parts(images), STEPS):
            found, wanted = answers(rounded, original, pixels, mask)
            gradients = torch.autograd.grad(distance(found, wanted, original.head), list(rates), allow_unused=True)
            for parameter, gradient in zip(rates, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
            schedule.step()
            one_more()
    optimizer.zero_grad()
    if not _mean_distance(rounded, original, images) < before:
        with torch.no_grad():
            for parameter, value in zip(rates, begun, strict=True):
                parameter.copy_(value)


@torch.no_grad()
def _mean_distance(rounded: Detector, original: Detector, images: CalibrationImages) -> float:
    parts = [distance(*answers(rounded, original, *part), original.head) for part in islice(_parts(images), JUDGES // IMAGES)]
    return torch.stack(parts).mean().item()


def answers(rounded: Detector, original: Detector, pixels: Tensor, mask: Tensor) -> tuple[DetectorOutput, DetectorOutput]:
    """Of both detectors to the same images (B, 3, H, W), (B, H, W), with the same queries."""
    padded = not bool(mask.all())
    with torch.no_grad():
        wanted = original(pixels, mask, padded=padded)
    found = rounded(pixels, mask, padded=padded)
    return (rounded.decode(wanted.queries, found.memory) if rounded.family.queries_from_encoder else found), wanted


def distance(found: DetectorOutput, wanted: DetectorOutput, head: Head) -> Tensor:
    """() how far answers are from those of the float detector, all layers together; 0 where they are the same."""
    divergence = _divergence(found.logits, wanted.logits, head)
    sure = head.probabilities(wanted.logits).amax(-1)
    sure = torch.where(sure < LEAST_SURE, 0.0, sure)
    l1, giou = box_losses(found.boxes.flatten(0, 2), wanted.boxes.flatten(0, 2))
    of_query = divergence.flatten() + L1_WEIGHT * l1 + GIOU_WEIGHT * giou
    objects = (sure.flatten() * of_query).sum() / sure.sum().clamp(min=LEAST_SURE)
    states = _relative(found.memory.tokens, wanted.memory.tokens) + _relative(found.hidden, wanted.hidden)
    return states + objects + divergence.mean()


def _relative(found: Tensor, wanted: Tensor) -> Tensor:
    return (found - wanted).square().sum() / wanted.square().sum()


def _divergence(found: Tensor, wanted: Tensor, head: Head) -> Tensor:
    """KL(p || p') of logits (..., C) -> (...)."""
    if head is Head.SOFTMAX:
        return F.kl_div(found.log_softmax(-1), wanted.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    p = wanted.sigmoid()
    cross, own = (F.binary_cross_entropy_with_logits(logits, p, reduction="none") for logits in (found, wanted))
    return (cross - own).sum(-1)


def _of(kind: type[M], detector: Detector) -> list[M]:
    return [module for module in detector.modules() if isinstance(module, kind)]


def _parts(images: Iterable[Images]) -> Iterator[Images]:
    """`IMAGES` at a time, without end."""
    while True:
        for pixels, mask in images:
            yield from zip(pixels.split(IMAGES), mask.split(IMAGES), strict=True)
