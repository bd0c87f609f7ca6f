"""A trained detector cut to its first decoder layers, to some of its queries and to another size of images, without training.

Decoder layers nest: what a layer answers does not depend on those behind it, so that a detector with fewer layers answers what
that layer did. Queries and sizes do not nest; which queries are kept is the caller's choice where they are learned, and the
encoder's best where it chooses them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch

from leandetr.detectors.detector import Detector
from leandetr.detectors.query_sets import has_distillation_queries
from leandetr.detectors.reconfigure import reconfigure, resize_images, resize_queries
from leandetr.errors import UserError


def check_float(detector: Detector, name: str, verb: str = "trim") -> None:
    """Raises UserError for a quantized detector, called `name`, and for one whose answer is not its last layer's. verb: what is
    to be done to it."""
    if getattr(detector.config, "quantization_config", None) is not None:
        raise UserError(f"{name} is quantized already; {verb} the float detector and quantize what comes of it")
    if getattr(detector.config, "eval_idx", -1) not in (-1, detector.config.decoder_layers - 1):
        raise UserError(f"{name} answers with decoder layer eval_idx = {detector.config.eval_idx}, not its last; give another")


def query_count(detector: Detector) -> int:
    """How many object queries it has that can become fewer; 0 where all must stay: with distillation queries beside them, or
    learned ones of which several share a row."""
    chosen = detector.family.queries_from_encoder or detector.family.learned_queries(detector.model) is not None
    return detector.config.num_queries if chosen and not has_distillation_queries(detector.config) else 0


def trim(
    detector: Detector,
    layers: int | None = None,
    queries: int | None = None,
    size: tuple[int, int] | int | None = None,
) -> Detector:
    """The detector with less of each; what is None stays.

    Args:
        detector: float, in evaluation mode; it is left as it is.
        layers: of its decoder, the first.
        queries: so many: of learned ones the first, of those that the encoder chooses the best.
        size: of images, as in `resize_images`.

    Raises:
        UserError: a number below 1 or above the detector's own, a family that has no decoder of so few layers, and for a size
            as `resize_images`.
    """
    config = detector.config
    for what, asked, most in (("decoder layers", layers, config.decoder_layers), ("queries", queries, config.num_queries)):
        if asked is not None and not 1 <= asked <= most:
            raise UserError(f"{asked} {what}: the detector has {most}; ask for 1 to {most}")
    if queries is not None and queries < config.num_queries:
        detector = resize_queries(detector, queries)
    if layers is not None and layers < config.decoder_layers:
        index = {"eval_idx": -1} if hasattr(config, "eval_idx") else {}
        detector, _ = reconfigure(detector, {"decoder_layers": layers} | index)
    prepared = detector.preprocessing
    if size is not None and size not in (prepared.size, prepared.shortest_edge):
        detector = resize_images(detector, size)
    return detector


@torch.no_grad()
def in_order(detector: Detector, order: Sequence[int]) -> Detector:
    """A copy whose learned queries are in this order, which changes the order of its answers and nothing else.

    Raises UserError where it has no table of them, a row a query.
    """
    detector = copy.deepcopy(detector)
    table = detector.family.learned_queries(detector.model)
    if table is None:
        raise UserError(f"this {detector.config.model_type} has no table of learned queries; leave their order")
    table.weight.copy_(table.weight[list(order)].clone())
    return detector
