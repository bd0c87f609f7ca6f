"""Other classes for a trained detector: the rows of its class heads, by name.

Fine-tuning keeps what a detector knows. Loading "what fits by shape" does not: it throws a whole head away where the number of
classes differs, and keeps the rows of other classes where it happens to agree. Here every weight with a row a class, which its
family lists (`Family.class_rows`), is made anew row by row: that of a class of the same name is copied, with its bias, in every
head; a new class gets

    w = mean of the old rows + N(0, (0.02 std of the old weights)^2),    b = mean of the old biases

and so begins as the mean of the old classes: as rare as those have become, and as no other new class. `Rows` says what differs
where the rows are no logits of classes.

A focal prior of 0.01 as the bias of a sigmoid head's new rows, beside the mean old bias among the encoder's proposals, begins
worse or alike, because the mean row is not orthogonal to the mean query. Both ways from the same checkpoints, trained further
at 96 to 128 pixels: loss before the first step, AP after the first and the last epoch (APs below .01 say little):

    from, classes                  to, new classes          mean old bias        prior 0.01
    RT-DETRv2, shapes, 6           200 of BCCD, 3           21.4, .040, .039     24.7, .030, .029   2 epochs, 3 seeds
    RT-DETRv2, BCCD, 3             the same, renamed, 3     18.2, .069, .068     23.2, .069, .067   2 epochs, 1 seed
    RT-DETRv2, BCCD, 3             240 of groceries, 25     31.7, .005, .005     33.9, .002, .005   3 epochs, 2 seeds
    AdaMixer, FOD, 31              200 of BCCD, 3           17.1, .001           17.1, .001         1 epoch, 3 seeds
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from leandetr.detectors.detector import Detector
from leandetr.detectors.families.family import Rows
from leandetr.errors import UserError
from leandetr.structures import ClassMap

SPREAD = 0.02  # of new rows about the mean of the old ones, in deviations of the old weights
NO_CLASSES = {"", "na", "background"}  # what columns that stand for no class are called, folded
SHOWN = 6  # names in a line


@dataclass(frozen=True)
class ClassChange:
    """kept: new name -> the old class whose rows it has. new, dropped: names without a counterpart."""

    kept: dict[str, str]
    new: tuple[str, ...]
    dropped: tuple[str, ...]

    def __str__(self) -> str:
        """In one line: `kept 2 classes (cat; dog from Dog), 1 is new (fox), dropped 78 (car, bus, ...)`."""
        kept = [name if name == old else f"{name} from {old}" for name, old in self.kept.items()]
        parts = [
            f"kept {len(kept)} of the classes{_listed(kept)}",
            f"{len(self.new)} new{_listed(self.new)}",
            f"dropped {len(self.dropped)}{_listed(self.dropped)}",
        ]
        return ", ".join(parts)


def folded(name: str) -> str:
    """What two spellings of a class have in common.

    >>> folded("Traffic Light") == folded("traffic_light")
    True
    """
    return re.sub(r"[\W_]+", "", name.casefold())


@torch.no_grad()
def reset_classifier(detector: Detector, class_map: ClassMap) -> ClassChange:
    """Give a detector these classes, in place; its boxes, and the scores of kept classes of a sigmoid head, do not change.

    The same names in the same order leave every weight as it is. Two classes are the same where their names are, else where
    they are but for case, spaces and punctuation. Randomness comes from torch's global generator.

    Raises UserError for a quantized detector, whose heads are integers.
    """
    old, config = detector.class_map, detector.config
    sources = _sources(old.names, class_map.names)
    kept = {name: old.names[source] for name, source in zip(class_map.names, sources, strict=True) if source is not None}
    new = tuple(name for name, source in zip(class_map.names, sources, strict=True) if source is None)
    dropped = tuple(dict.fromkeys(n for n in old.names if n not in kept.values() and folded(n) not in NO_CLASSES))
    if class_map.names != old.names:
        if getattr(config, "quantization_config", None) is not None:
            raise UserError(
                "a quantized detector cannot get other classes, because its class heads are integers; fine-tune the float "
                "detector and quantize that"
            )
        _reset(detector, sources)
        config.id2label = dict(enumerate(class_map.names))
        config.label2id = {name: index for index, name in enumerate(class_map.names)}
    detector.class_map = class_map
    return ClassChange(kept, new, dropped)


def _sources(old: Sequence[str], new: Sequence[str]) -> list[int | None]:
    """The old class of each new one; None where there is none. Each is taken once, by the one that spells it as it is."""
    if tuple(old) == tuple(new):
        return list(range(len(old)))
    known = {name: index for index, name in reversed(list(enumerate(old))) if folded(name) not in NO_CLASSES}
    found = [known.get(name) for name in new]
    free = {folded(name): index for name, index in reversed(known.items()) if index not in found}
    return [free.pop(folded(name), None) if index is None else index for name, index in zip(new, found, strict=True)]


def _reset(detector: Detector, sources: list[int | None]) -> None:
    kinds = detector.family.class_rows(detector.config)
    no_object = detector.head.has_no_object
    layers: dict[Any, Rows] = {}  # each once, however many names it has
    for name, layer in detector.model.named_modules(remove_duplicate=False):
        kind = next((kind for pattern, kind in kinds.items() if fnmatchcase(name, pattern)), None)
        if kind is not None:
            layers.setdefault(layer, kind)
    made: dict[nn.Parameter, nn.Parameter] = {}  # tied weights are one parameter before and after
    for layer, kind in layers.items():
        for key, parameter in list(layer.named_parameters(recurse=False)):
            if parameter not in made:
                rows = _rows(parameter, sources, kind, no_object)
                made[parameter] = nn.Parameter(rows, requires_grad=parameter.requires_grad)
            setattr(layer, key, made[parameter])
        if isinstance(layer, nn.Embedding):
            layer.num_embeddings = len(layer.weight)
            layer.padding_idx = None if layer.padding_idx is None else len(layer.weight) - 1
        else:
            layer.out_features = len(layer.weight)


def _rows(old: Tensor, sources: list[int | None], kind: Rows, no_object: bool) -> Tensor:
    """The rows of a weight (K, D) or bias (K,) for the classes with these old ones."""
    last = 1 if kind is Rows.LABELS or (no_object and kind is Rows.CLASSES) else 0  # padding, or no object
    classes, end = old[: len(old) - last], old[len(old) - last :]
    rows = classes.mean(0, keepdim=True).repeat(len(sources), *(1,) * (old.ndim - 1))
    if old.ndim > 1:
        rows += SPREAD * classes.std() * torch.randn_like(rows)
    kept = [(row, source) for row, source in enumerate(sources) if source is not None]
    for row, source in kept:
        rows[row] = classes[source]
    if kind is Rows.OBJECTNESS:
        rows[0] = old[0]
    return torch.cat([rows, end])


def _listed(names: Sequence[str]) -> str:
    if not names:
        return ""
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f" ({', '.join(names[:SHOWN])}{more})"
