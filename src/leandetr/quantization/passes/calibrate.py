"""The float model on the calibration images: exactly as many as were asked for, observed where grids are placed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from leandetr.detectors.detector import Detector
from leandetr.errors import UserError
from leandetr.quantization.grids import GridSetting, grid_of, has_negatives
from leandetr.quantization.layers.rounding import InputMoment
from leandetr.quantization.layers.trainable import ActivationGrid
from leandetr.quantization.passes.observers import Observer, observer_of
from leandetr.quantization.passes.placement import Placement
from leandetr.structures import Batch

Images = tuple[Tensor, Tensor]  # pixel values and masks


class CalibrationImages:
    """Pixel values and masks of exactly `asked` images of the batches, batch by batch, on the detector's device. A second pass
    reads the batches again.

    first: the first batch, read at once; without images an empty one, to run the model on where only the order of its modules
    matters.

    Raises UserError where there are fewer than asked for, all are empty, or values are not finite.
    """

    def __init__(self, batches: Iterable[Batch], asked: int, detector: Detector) -> None:
        self.batches, self.asked = batches, asked
        self.device = next(detector.parameters()).device
        self._begun = self._read() if asked else None
        self.first = blank(detector) if self._begun is None else next(self._begun)

    def __iter__(self) -> Iterator[Images]:
        begun, self._begun = self._begun, None
        return self._read() if begun is None else chain([self.first], begun)

    def _read(self) -> Iterator[Images]:
        found, content = 0, False
        for batch in self.batches:
            pixels, mask = (batch[key][: self.asked - found].to(self.device) for key in ("pixel_values", "pixel_mask"))
            if not pixels.isfinite().all():
                raise UserError("a calibration image has values that are not finite; give images as the detector takes them")
            found += len(pixels)
            content = content or _has_content(pixels, mask)
            if found == self.asked and not content:
                raise UserError(
                    f"all {found} calibration images are empty (every pixel alike); give images like those to be detected on"
                )
            if len(pixels):
                yield pixels, mask
            if found == self.asked:
                return
        if found == 0:
            raise UserError("this scheme needs calibration images and there are none; give images of the training split")
        raise UserError(
            f"{self.asked} calibration images were asked for and there are {found}; give more or lower calibration_images"
        )


def blank(detector: Detector) -> Images:
    """One empty image."""
    height, width = detector.preprocessing.size or (256, 256)
    device = next(detector.parameters()).device
    return torch.zeros(1, 3, height, width, device=device), torch.ones(1, height, width, dtype=torch.long, device=device)


def _has_content(pixels: Tensor, mask: Tensor) -> bool:
    """Whether some channel of some image differs from pixel to pixel, padding (right and bottom) left out."""
    real = torch.where(mask[:, None].bool(), pixels, pixels[:, :, :1, :1])
    return bool((real.amax((2, 3)) > real.amin((2, 3))).any())


class Watching(Protocol):
    """What takes in tensors."""

    def update(self, x: Tensor) -> None: ...


class Grid(NamedTuple):
    """scale () float32, zero_point () uint8. negative: whether the tensor has negative values, which a zero point of 0 does
    not tell: they may be smaller than half a step."""

    scale: Tensor
    zero_point: Tensor
    negative: bool


Found = dict[nn.Module, Grid]


@dataclass
class Grids:
    """Of the inputs and outputs of modules of the float model."""

    inputs: Found
    outputs: Found

    def fill(self, replaced: dict[nn.Module, nn.Module]) -> None:
        """Set the grids of the modules that have replaced the float ones."""
        for side, grids in (("input", self.inputs), ("output", self.outputs)):
            for module, found in grids.items():
                grid = getattr(replaced[module], side)
                grid.set(found.scale, found.zero_point)
                if isinstance(grid, ActivationGrid):
                    grid.train_zero_point(found.negative)


def calibrate(model: nn.Module, placement: Placement, moments: dict[nn.Module, InputMoment], images: Iterable[Images]) -> Grids:
    """Observe the float model on the images: sum the moments, and choose the grids."""
    inputs = {module: observer_of(setting) for module, setting in placement.inputs.items()}
    outputs = {module: observer_of(setting) for module, setting in placement.outputs.items()}
    observe(model, images, [*inputs.items(), *moments.items()], [*outputs.items()])
    grids = Grids(_chosen(inputs, placement.inputs), _chosen(outputs, placement.outputs))
    grids.inputs |= {layer: grids.outputs[source] for layer, source in placement.sources.items()}
    return grids


def observe(
    model: nn.Module,
    images: Iterable[Images],
    inputs: Iterable[tuple[nn.Module, Watching]],
    outputs: Iterable[tuple[nn.Module, Watching]] = (),
) -> None:
    """Run the model on the images and show what goes into modules, or comes out of them, to observers."""
    handles = [module.register_forward_pre_hook(_reader(observer)) for module, observer in inputs]
    handles += [module.register_forward_hook(_reader(observer)) for module, observer in outputs]
    try:
        for pixels, mask in images:
            model(pixel_values=pixels, pixel_mask=mask)
    finally:
        for handle in handles:
            handle.remove()


def _reader(observer: Watching) -> Callable[..., None]:
    """A hook that shows a module's input, or its output in a forward hook, to an observer. It raises UserError for values that
    are not finite."""

    def read(module: nn.Module, inputs: tuple, output: Tensor | None = None) -> None:
        x = inputs[0] if output is None else output
        if not torch.isfinite(x).all():
            raise UserError(f"a {type(module).__name__} of the model gives values that are not finite; check its weights")
        observer.update(x)

    return read


def _chosen(observers: dict[nn.Module, Observer], settings: dict[nn.Module, GridSetting]) -> Found:
    ranges = {module: observer.range() for module, observer in observers.items()}
    return {
        module: Grid(*grid_of(low, high, settings[module].bits, settings[module].symmetric), has_negatives(low))
        for module, (low, high) in ranges.items()
    }
