"""The channels inside blocks of convolutions, and the hidden units of a backbone's own feed-forward layers.

    x + c2(f(n1(c1 x)))          a channel: a row of c1, its norm, a column of c2

What goes around a block, or on to the next, keeps its width: such channels are coupled with those of every block of a stage.
Depthwise convolutions and squeeze-and-excitation between the two compute a channel of itself, or scale it, and lose it too.
Blocks are known by the names of their classes, which timm and transformers give the same layers in all their models.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from leandetr.detectors.feed_forward import hidden_units_of
from leandetr.detectors.units import Gate, Part, Units, depthwise

#: class of a block -> its layers in the order in which they compute
CHAINS = {
    "BasicBlock": ("conv1", "bn1", "aa", "conv2"),
    "Bottleneck": ("conv1", "bn1", "conv2", "bn2", "aa", "conv3"),
    "InvertedResidual": ("conv_pw", "bn1", "conv_dw", "bn2", "aa", "se", "conv_pwl"),
    "EdgeResidual": ("conv_exp", "bn1", "aa", "se", "conv_pwl"),
    "UniversalInvertedResidual": ("pw_exp", "dw_mid", "se", "pw_proj"),
    "ResNetBasicLayer": ("layer",),
    "ResNetBottleNeckLayer": ("layer",),
    "RTDetrResNetBasicLayer": ("layer",),
    "RTDetrResNetBottleNeckLayer": ("layer",),
}
AGGREGATING = ("HGNetV2BasicLayer", "HighPerfGpuBlock")  # layers in a row, all concatenated
PARTIAL = ("RTDetrCSPRepLayer", "RTDetrV2CSPRepLayer")  # two branches added, one of them through more blocks
ELAN = ("DFineRepNCSPELAN4",)  # two of such blocks with a convolution after each, all concatenated
EXCITING = (("conv_reduce", "conv_expand"), ("fc1", "fc2"))  # convolutions of squeeze-and-excitation


def inner_channels(model: PreTrainedModel) -> dict[str, Units]:
    """By the name of the convolution or block that makes them, in the model's order."""
    names = {module: name for name, module in model.named_modules()}
    found: dict[nn.Module, Units] = {}
    for module, name in names.items():
        kinds = {kind.__name__ for kind in type(module).__mro__}
        for kind in kinds & CHAINS.keys():
            found |= _of_chain(getattr(module, layer, None) for layer in CHAINS[kind])
        if kinds & set(AGGREGATING):
            found |= _of_aggregation(module)
        elif kinds & set(PARTIAL) and isinstance(module.conv3, nn.Module) and any(True for _ in _convolutions(module.conv3)):
            found[module] = _of_partial(module, module.conv3)
        elif kinds & set(ELAN):
            found |= _of_elan(module)
        elif name.startswith("model.backbone.") and _is_feed_forward(module):
            units = hidden_units_of(module, "channels")
            found |= {} if units is None else {module: units}
    return {names[module]: units for module, units in found.items()}


def _of_chain(layers: Iterable[nn.Module | None]) -> dict[nn.Module, Units]:
    """Convolution -> its channels that the next alone reads; empty where there is a layer that is not understood."""
    found: dict[nn.Module, Units] = {}
    maker: nn.Conv2d | None = None
    parts: list[Part] = []
    gate: Gate | None = None
    for layer in _in_order(layers):
        if isinstance(layer, nn.Conv2d) and not (maker is not None and depthwise(layer)):
            if maker is not None and layer.groups == 1:
                reading = Part(layer, reads=True)
                found[maker] = Units("channels", (*parts, reading), (gate or Gate(layer, axis=1),))
            maker, parts, gate = (layer if layer.groups == 1 else None), [Part(layer)], None
        elif isinstance(layer, nn.Conv2d) or _is_norm(layer):
            parts.append(Part(layer))
            gate = None
        elif (excitation := _excitation(layer)) is not None:
            squeeze, expand = excitation
            parts += [Part(squeeze, reads=True), Part(expand)]
            gate = gate or Gate(layer, axis=1)
        else:
            return {}
    return found


def _of_aggregation(block: Any) -> dict[nn.Module, Units]:
    """The layers' channels, which the next layer and the first of the aggregation read, and those inside the aggregation."""
    first, *others = block.aggregation
    inputs = next(_convolutions(block.layers[0])).in_channels
    makers = [next(_convolutions(layer)) for layer in block.layers]
    reader = next(_convolutions(first))
    found: dict[nn.Module, Units] = {}
    for number, (layer, maker) in enumerate(zip(block.layers, makers, strict=True)):
        parts = [Part(each) for each in _in_order([layer])]
        if number + 1 < len(makers):
            parts.append(Part(makers[number + 1], reads=True))
        parts.append(Part(reader, reads=True, first=inputs, behind=tuple(makers[:number])))
        found[maker] = Units("channels", tuple(parts), (Gate(layer, answers=True, axis=1),))
    plain = all(type(layer) is type(first) for layer in others)
    return found | (_of_chain(block.aggregation) if plain else {})


def _of_partial(block: Any, reader: nn.Module) -> Units:
    """The channels of both branches, which are added, pass through all blocks of the first and are read by a convolution."""
    made = [*_in_order([block.conv1]), *_in_order([block.conv2])]
    parts = [Part(layer) for layer in made]
    for layer in _in_order(block.bottlenecks):
        parts += [Part(layer), *([Part(layer, reads=True)] if isinstance(layer, nn.Conv2d) else [])]
    parts.append(Part(next(_convolutions(reader)), reads=True))
    gates = (Gate(module, answers=True, axis=1) for module in (block.conv1, block.conv2, *block.bottlenecks))
    return Units("channels", tuple(parts), tuple(gates))


def _of_elan(block: Any) -> dict[nn.Module, Units]:
    """The channels of either partial block, which have one width, and of the convolutions after them."""
    last, split = next(_convolutions(block.conv4)), next(_convolutions(block.conv1)).out_channels
    inner, outer = (next(_convolutions(layer)) for layer in (block.conv2, block.conv3))
    branches = (next(_convolutions(layer)) for layer in (block.csp_rep2.conv1, block.csp_rep2.conv2))
    of_inner = [*(Part(each) for each in _in_order([block.conv2])), *(Part(each, reads=True) for each in branches)]
    of_inner.append(Part(last, reads=True, first=split))
    of_outer = [*(Part(each) for each in _in_order([block.conv3])), Part(last, reads=True, first=split, behind=(inner,))]
    return {
        block.csp_rep1: _of_partial(block.csp_rep1, block.conv2),
        inner: Units("channels", tuple(of_inner), (Gate(block.conv2, answers=True, axis=1),)),
        block.csp_rep2: _of_partial(block.csp_rep2, block.conv3),
        outer: Units("channels", tuple(of_outer), (Gate(block.conv3, answers=True, axis=1),)),
    }


def _in_order(layers: Iterable[nn.Module | None]) -> Iterator[nn.Module]:
    """Those with weights, taken out of what wraps them; squeeze-and-excitation as a whole, and not what scales all channels
    alike."""
    for layer in layers:
        if layer is None or all(value.numel() == 1 for value in layer.state_dict().values()):
            continue
        wraps = not any(True for _ in layer.named_parameters(recurse=False)) and not _is_norm(layer)
        if wraps and _excitation(layer) is None:
            yield from _in_order(layer.children())
        else:
            yield layer


def _convolutions(layer: nn.Module) -> Iterator[nn.Conv2d]:
    return (each for each in layer.modules() if isinstance(each, nn.Conv2d))


def _is_norm(layer: nn.Module) -> bool:
    """Whether it is a batch norm, frozen or not, which scales every channel by itself."""
    return getattr(layer, "running_mean", None) is not None


def _excitation(layer: nn.Module) -> tuple[nn.Conv2d, nn.Conv2d] | None:
    """The convolutions of squeeze-and-excitation around which there is no norm."""
    inside = dict(layer.named_children())
    for squeeze, expand in EXCITING:
        pair = inside.get(squeeze), inside.get(expand)
        if isinstance(pair[0], nn.Conv2d) and isinstance(pair[1], nn.Conv2d):
            return pair[0], pair[1]
    return None


def _is_feed_forward(module: nn.Module) -> bool:
    """Whether a module with layers into and out of hidden units has no others with weights."""
    inside = [name for name, child in module.named_children() if any(True for _ in child.parameters())]
    return inside in (["fc1", "fc2"], ["gate_proj", "up_proj", "down_proj"], ["up_proj", "gate_proj", "down_proj"])
