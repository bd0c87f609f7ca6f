"""One verb: `quantize(detector, config, calibration_batches)` gives a detector whose layers hold integers."""

from __future__ import annotations

from collections.abc import Iterable

from leandetr.detectors.detector import Detector
from leandetr.errors import UserError
from leandetr.quantization.choice.unified import quantize_unified
from leandetr.quantization.config import Scheme, Unified
from leandetr.quantization.passes.apply import apply
from leandetr.structures import Batch


def quantize(detector: Detector, config: Scheme, calibration_batches: Iterable[Batch] = ()) -> Detector:
    """A quantized copy of a detector; the float one stays as it is.

    Args:
        detector: a float detector.
        config: one of the schemes of `config`.
        calibration_batches: batches as the detector takes them, read no further than the scheme's `calibration_images`, and
            once, but twice by `SmoothQuant` with static grids, and often by `Unified` and for calibrated weights of fewer than
            8 bits, which want a list or a loader; `Dynamic`, and `WeightOnly` by default, need none. Memory does not depend on
            their number.

    Returns:
        The quantized detector in evaluation mode; with `LowBit` it is one to train, of which `finish` makes integers. Its
        `config.quantization_config` records what was done, and `summary()` of that says how many layers were quantized, and
        which stayed float or hold more bits than asked for, and why.

    Raises:
        UserError: the detector is quantized already; a layer pattern matches nothing; calibration images are missing, fewer
            than asked, or all empty; weights, images or a layer's values are not finite.

    Examples:
        >>> small = quantize(detector, Static(calibration_images=64), loader)      # doctest: +SKIP
        >>> print(small.config.quantization_config.summary())                      # doctest: +SKIP
    """
    if broken := detector.not_finite():
        raise UserError(
            f"{broken} of the model holds numbers that are not finite; train it again, or take an earlier checkpoint"
        )
    if isinstance(config, Unified):
        return quantize_unified(detector, config, calibration_batches)
    return apply(detector, config, calibration_batches)
