"""What layers, queries and pixels cost on an engine: a few detectors measured, the others between them.

    T(size, l, n) = a(size) + l (b(size) + c(size) n)

for l decoder layers and n queries. Of every size up to three detectors are measured: with all layers and queries, with the
fewest layers, with the fewest queries; they give its a, b and c. Those of all sizes are measured in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from leandetr.data.coco import Split
from leandetr.deployment.latency import measured
from leandetr.detectors.trim import trim
from leandetr.trimming.candidates import Grid, Size
from leandetr.trimming.goal import Point

Key = tuple[int, int, Size]


def estimated(grid: Grid, split: Split, engine: str) -> dict[Key, Point]:
    """Every point of a grid with its latency; AP is not known yet."""
    corners = {size: _corners(grid, size) for size in grid.bases}
    made = {f"{number}": key for number, key in enumerate(key for keys in corners.values() for key in keys)}
    candidates = {name: trim(grid.bases[size], layers, count) for name, (layers, count, size) in made.items()}
    took = {made[name]: row["latency_ms"] for name, row in measured(candidates, split, engine).items()}
    points = {}
    for size, keys in corners.items():
        time = _fitted({(layers, count): took[layers, count, size] for layers, count, _ in keys})
        for layers in grid.layers:
            for count in grid.counts_at(size):
                key = layers, count, size
                points[key] = Point(*key, latency_ms=took.get(key, time(layers, count)), measured=key in took)
    return points


def _corners(grid: Grid, size: Size) -> list[Key]:
    counts, layers = grid.counts_at(size), grid.layers
    keys = [(layers[0], counts[0], size), (layers[-1], counts[0], size), (layers[0], counts[-1], size)]
    return list(dict.fromkeys(keys))


def _fitted(took: Mapping[tuple[int, int], float]) -> Callable[[int, int], float]:
    """(layers, queries) -> milliseconds. No layer and no query takes less than nothing, whatever noise says.

    >>> time = _fitted({(6, 100): 16.0, (1, 100): 6.0, (6, 50): 10.0})
    >>> time(6, 100), time(3, 100), time(3, 50)
    (16.0, 10.0, 7.0)
    """
    most_layers, most = max(took)
    whole = took[most_layers, most]
    fewer_layers, fewer = min(layers for layers, _ in took), min(count for _, count in took)
    layer = query = 0.0
    if fewer_layers < most_layers:
        layer = max(0.0, (whole - took[fewer_layers, most]) / (most_layers - fewer_layers))
    if fewer < most:  # no more of a layer's time than a layer takes
        query = (whole - took[most_layers, fewer]) / (most_layers * (most - fewer))
        query = min(max(0.0, query), layer / most)
    return lambda layers, count: whole - (most_layers - layers) * layer - layers * query * (most - count)
