"""Which layers, queries and sizes are measured of a detector."""

from __future__ import annotations

import math
from dataclasses import dataclass

from leandetr.detectors.create import COARSEST
from leandetr.detectors.detector import Detector
from leandetr.detectors.trim import query_count, trim
from leandetr.errors import UserError
from leandetr.structures import size_in_words

Size = tuple[int, int] | int
QUERIES = (1, 0.75, 0.5, 0.375, 0.25)  # of the detector's own
SIDES = (1, 0.875, 0.75, 0.625, 0.5)


@dataclass(frozen=True)
class Grid:
    """layers, counts: of decoder layers and queries, the most first. bases: by size, the detector of that size with all its
    layers and the most queries that it can have there. left_out: what is not measured and why, a sentence each."""

    layers: list[int]
    counts: list[int]
    bases: dict[Size, Detector]
    left_out: list[str]

    def counts_at(self, size: Size) -> list[int]:
        return [count for count in self.counts if count <= self.bases[size].config.num_queries]


def grid_of(detector: Detector) -> Grid:
    """All that can be tried of a detector, and sentences about what cannot."""
    left_out: list[str] = []
    layers = list(range(detector.config.decoder_layers, 0, -1))
    if len(layers) > 1:
        try:
            trim(detector, layers=1)
        except UserError as error:
            layers.pop()
            left_out.append(f"one decoder layer: {error}")
    own = detector.config.num_queries
    counts = [own]
    if query_count(detector):
        counts = sorted({max(1, round(own * part)) for part in QUERIES}, reverse=True)
    else:
        left_out.append("fewer queries: these cannot be taken apart")
    bases: dict[Size, Detector] = {}
    for size in sizes_of(detector):
        try:
            bases[size] = _largest(detector, size, counts)
        except UserError as error:
            left_out.append(f"images of {size_in_words(size)}: {error}")
    return Grid(layers, counts, bases, left_out)


def own_size(detector: Detector) -> Size:
    """(height, width) of a fixed size, or the shorter side."""
    prepared = detector.preprocessing
    size = prepared.shortest_edge if prepared.size is None else prepared.size
    assert size is not None  # a preprocessing has one of the two
    return size


def sizes_of(detector: Detector) -> list[Size]:
    """Its own and smaller ones about in its proportions, on the family's grid."""
    size, divisor = own_size(detector), detector.family.divisor(detector.config.backbone_config.to_dict())
    least = math.ceil(COARSEST / divisor) * divisor

    def scaled(side: int, part: float) -> int:
        return side if part == 1 else max(least, round(side * part / divisor) * divisor)

    if isinstance(size, int):
        return list(dict.fromkeys(scaled(size, part) for part in SIDES))
    height, width = size
    return list(dict.fromkeys((scaled(height, part), scaled(width, part)) for part in SIDES))


def _largest(detector: Detector, size: Size, counts: list[int]) -> Detector:
    """With the most of the counts of queries that the size has cells for. Raises UserError where it has too few for any."""
    for count in counts:
        try:
            return trim(detector, queries=count, size=size)
        except UserError:
            if count == counts[-1]:
                raise
    raise AssertionError("there is no count")
