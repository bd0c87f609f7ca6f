"""Whether a detector can answer images of a size, and which is the smallest that it can."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from leandetr.detectors.detector import Detector
from leandetr.errors import UserError

LARGEST = 1280  # pixels: the shorter side beyond which no size that works is sought


class Choices(TorchFunctionMode):
    """While it is active, `asked` and `cells` are those of the last choice of queries among the cells of an image."""

    asked = cells = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.topk, torch.Tensor.topk):
            given = dict(zip(("input", "k", "dim"), args)) | (kwargs or {})
            self.asked, self.cells = int(given["k"]), given["input"].shape[given.get("dim", -1)]
        return func(*args, **(kwargs or {}))


@contextmanager
def explained(detector: Detector, size: tuple[int, int] | None, asked: str) -> Iterator[None]:
    """Where the block ends with an error that is no sentence, as models raise for shapes and configurations, and the detector
    cannot answer a blank image of (height, width) either, the error of `check_answers`. size: None where it is not known."""
    try:
        yield
    except UserError:
        raise
    except Exception:
        if size is not None:
            check_answers(detector, size, asked)
        raise


@torch.no_grad()
def check_answers(detector: Detector, size: tuple[int, int], asked: str) -> None:
    """Raises UserError, which begins with `asked`, where the detector cannot answer an image of (height, width): it has fewer
    cells than queries are chosen among them, or a map becomes smaller than a layer can take. The sentence names the cause, the
    smallest size of these proportions that works, and how many queries would."""
    training, choices = detector.training, Choices()
    detector.eval()
    try:
        with choices:
            _answer(detector, size)
    except Exception as error:  # a model raises whatever its shapes lead it to
        least = _smallest(detector, size)
        larger = "" if least is None else f"an image of at least {least[0]} {least[1]}"
        place = f"an image of {size[0]} {size[1]}"
        if choices.asked > choices.cells:
            what = f"{choices.asked} queries cannot be chosen among the {choices.cells} cells of {place}"
            mend = f"at most {choices.cells} queries" + (f" or {larger}" if larger else "")
        else:
            cause = (str(error).splitlines() or [type(error).__name__])[0]
            if "more than 1 value per channel" in cause:
                cause = "its coarsest map has one cell, which leaves a norm over groups of one channel nothing to compare"
            what, mend = f"the model cannot answer {place} ({cause})", larger or "another size"
        raise UserError(f"{asked}: {what}; ask for {mend}") from error
    finally:
        detector.train(training)


def _smallest(detector: Detector, size: tuple[int, int]) -> tuple[int, int] | None:
    """The least (height, width) beyond `size`, about in its proportions, that is answered; None where there is none."""
    divisor = detector.family.divisor(detector.config.to_dict().get("backbone_config") or {})

    def scaled(steps: int) -> tuple[int, int]:
        height, width = (math.ceil(side * steps / min(size)) * divisor for side in size)
        return height, width

    low = max(1, min(size) // divisor)
    high = 2 * low
    while not _works(detector, scaled(high)):
        low, high = high, 2 * high
        if high * divisor > LARGEST:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _works(detector, scaled(middle)) else (middle, high)
    return scaled(high)


def _works(detector: Detector, size: tuple[int, int]) -> bool:
    try:
        _answer(detector, size)
    except Exception:  # as above
        return False
    return True


def _answer(detector: Detector, size: tuple[int, int]) -> None:
    parameter = next(detector.parameters())
    detector.model(pixel_values=torch.zeros(1, 3, *size, device=parameter.device))
