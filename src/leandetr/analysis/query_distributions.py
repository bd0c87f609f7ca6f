"""How the queries of the decoder's cross-attention are distributed, before and after their alignment (Q-DETR, section 2.4.4,
figure 2.8), and how much information they carry by themselves.

Two entropies of a layer's query values q:

    Gaussian   1/2 log2(2 pi e var(q)), eq. 2.31: what alignment maximises. It moves with the scale of q, so only before and
               after within one detector can be compared
    codes      -sum over the 2^b codes of p log2 p, eq. 2.30, of q on a uniform grid of b = 4 bits from its smallest to its
               largest value: what is left of q once it is quantized, at most b bits

Where attention is deformable there is no product of queries and keys: the query is what sampling offsets and weights are made
of, content and position added, its channels cut into heads.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

from leandetr.analysis import figures
from leandetr.analysis.mutual_information import entropy
from leandetr.detectors.alignment import alignment_of
from leandetr.detectors.attention import open_attention
from leandetr.detectors.detector import Detector

BITS = 4
BINS = 80
HEADS = 8  # drawn
AS_THEY_COME, ALIGNED = "#999999", figures.LINES[0]
VALUES = 2_000_000  # of a layer, after which no more are kept


@dataclass
class Distributions:
    """Query values of every decoder layer, (H, n) for H heads, before and after the alignment; the same where there is none."""

    before: list[Tensor]
    after: list[Tensor]
    aligned: bool

    def as_dict(self) -> dict[str, Any]:
        """{"aligned": bool, "layers": [{"gaussian_before", "gaussian_after", "codes_before", "codes_after": bits, "heads":
        [{"mean_before", "std_before", "mean_after", "std_after"}]}]}"""
        layers = []
        for before, after in zip(self.before, self.after):
            both = {"before": before, "after": after}
            row: dict[str, Any] = {f"gaussian_{when}": gaussian_entropy(values) for when, values in both.items()}
            row |= {f"codes_{when}": code_entropy(values, BITS) for when, values in both.items()}
            row["heads"] = [
                {
                    f"{name}_{when}": getattr(values[head], name)().item()
                    for when, values in both.items()
                    for name in ("mean", "std")
                }
                for head in range(len(before))
            ]
            layers.append(row)
        return {"aligned": self.aligned, "layers": layers}


def gaussian_entropy(values: Tensor) -> float:
    """Of the Gaussian with the values' variance, in bits."""
    return 0.5 * math.log2(2 * math.pi * math.e * max(values.double().var().item(), 1e-30))


def code_entropy(values: Tensor, bits: int) -> float:
    """Of the values' codes on a uniform grid from the smallest to the largest, in bits: from 0 to `bits`."""
    low, high = values.min(), values.max()
    codes = ((values - low) / (high - low).clamp(min=1e-30) * (2**bits - 1)).round().long()
    return entropy(torch.bincount(codes.flatten()))


@contextmanager
def listening(detector: Detector) -> Iterator[list[list[tuple[Tensor, Tensor]]]]:
    """While the block runs, collect the queries of every decoder layer's attention to the image, (B, H, N, d) before and after
    their alignment, a pair a call; no layers in a family whose queries cannot be reached (AdaMixer, DAB-DETR)."""
    open_attention(detector.model)
    attentions = [detector.family.cross_attention(layer) for layer in detector.model.model.decoder.layers]
    reached = all(hasattr(attention, "slots") or hasattr(attention, "sampling_offsets") for attention in attentions)
    collected: list[list[tuple[Tensor, Tensor]]] = [[] for _ in attentions if reached]
    handles = [_listen(attention, found) for attention, found in zip(attentions, collected) if attention is not None]
    try:
        yield collected
    finally:
        for handle in handles:
            handle.remove()


def _listen(attention: nn.Module, found: list[tuple[Tensor, Tensor]]) -> Any:
    def heads(query: Tensor) -> Tensor:
        """(B, N, D) -> (B, H, N, d), where it has no heads yet."""
        return query if query.ndim == 4 else query.unflatten(-1, (attention.n_heads, -1)).transpose(1, 2)

    def add(before: Tensor, after: Tensor) -> None:
        if sum(query.numel() for query, _ in found) < VALUES:
            found.append((heads(before).cpu(), heads(after).cpu()))

    def unaligned(_module: nn.Module, _arguments: tuple, named: dict[str, Any]) -> None:
        query, position = named["hidden_states"], named.get("position_embeddings")
        query = query if position is None else query + position
        add(query, query)

    align: nn.Module | None = getattr(getattr(attention, "slots", attention), "align", None)
    if align is None:
        return attention.register_forward_pre_hook(unaligned, with_kwargs=True)
    return align.register_forward_hook(lambda _module, arguments, output: add(arguments[0], output))


def distributions(collected: list[list[tuple[Tensor, Tensor]]], detector: Detector) -> Distributions | None:
    """What `listening` has heard; None where it reached nothing."""
    if not collected:
        return None
    before, after = (
        [torch.cat([pair[which].transpose(0, 1).flatten(1) for pair in layer], 1) for layer in collected] for which in (0, 1)
    )
    return Distributions(before, after, alignment_of(detector.config) in ("cross", "both"))


def draw(found: Mapping[str, Distributions], path: Path) -> None:
    """The last layer's heads as histograms, a row a detector by its name, and the codes' entropy of every layer."""
    heads = min(HEADS, max(len(item.before[-1]) for item in found.values()))
    title = f"The queries of the decoder's cross-attention, head by head, and the entropy of their {BITS}-bit codes"
    caption = (
        f"Left: distribution of the last decoder layer's query values in each head (the first {heads} of them): grey as they "
        "come, blue after distribution alignment, where the detector has it. Right: entropy of all values of a layer on a "
        f"uniform grid of {2**BITS} levels from the smallest to the largest: what a query can still say in {BITS} bits, {BITS} "
        "bits at most. Outliers and heads of unlike spread lower it."
    )
    size = (1.25 * heads + 3.4, 1.6 * len(found) + 1.6)
    figure, axes = figures.panels(title, caption, len(found), heads + 1, size, width_ratios=[1] * heads + [2.2])
    for row, (name, item) in zip(axes, found.items()):
        draw_heads(row[:heads], item)
        draw_entropies(row[-1], item)
        row[0].set_ylabel(textwrap.fill(name, 18), fontsize=8)
    for number, panel in enumerate(axes[0, :heads], start=1):
        panel.set_title(f"head {number}", fontsize=8)
    axes[0, -1].set_title(f"entropy of {BITS}-bit codes", fontsize=8)
    axes[-1, 0].set_xlabel("query value")
    axes[-1, -1].set_xlabel("decoder layer")
    figures.save(figure, path)


def kinds(item: Distributions) -> list[tuple[list[Tensor], str]]:
    """What is drawn of a detector, and in which colour."""
    return [(item.before, AS_THEY_COME)] + ([(item.after, ALIGNED)] if item.aligned else [])


def draw_heads(panels: Sequence[Axes], item: Distributions) -> None:
    """Histograms of the last layer's queries, a head in each panel; panels without a head are hidden."""
    for values, colour in ((layers[-1], colour) for layers, colour in kinds(item)):
        edge = values.abs().flatten().kthvalue(int(0.999 * values.numel())).values.item()
        for panel, head in zip(panels, values):
            panel.hist(head.numpy(), bins=BINS, range=(-edge, edge), density=True, color=colour, alpha=0.65)
    for panel in panels:
        panel.set_yticks([])
    for panel in panels[len(item.before[-1]) :]:
        panel.set_visible(False)


def draw_entropies(panel: Axes, item: Distributions) -> None:
    """The entropy in bits of each layer's queries."""
    drawn, layers = kinds(item), np.arange(1, 1 + len(item.before))
    for number, (values, colour) in enumerate(drawn):
        bars = [code_entropy(layer, BITS) for layer in values]
        panel.bar(layers + (number - (len(drawn) - 1) / 2) * 0.35, bars, 0.33, color=colour)
    panel.set(ylim=(0, BITS), xlim=(0.4, len(layers) + 0.6), xticks=layers, ylabel="bits")
