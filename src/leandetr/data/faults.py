"""What is wrong with single entries of a data set: listed with counts and a few examples, whatever the layout."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Fault:
    """One kind of fault: how often it occurs, and where, for the first few times. image: whether the whole image is left out
    for it, since what it shows is not known."""

    kind: str
    count: int = 0
    examples: list[str] = field(default_factory=list)
    image: bool = False

    def __str__(self) -> str:
        return f"{self.kind} (image left out)" if self.image else self.kind


class Unusable(Exception):
    """An image or its labels cannot be used. kind: of fault. example: which file, and what is wrong in it."""

    def __init__(self, kind: str, example: str) -> None:
        super().__init__(f"{kind}: {example}")
        self.kind, self.example = kind, example


class Faults:
    """Faults by kind, in the order of their first occurrence. most: examples that are kept of each."""

    def __init__(self, most: int = 3) -> None:
        self.most = most
        self._kinds: dict[str, Fault] = {}

    def add(self, kind: str, example: str, image: bool = False) -> None:
        fault = self._kinds.setdefault(kind, Fault(kind, image=image))
        fault.count += 1
        if len(fault.examples) < self.most:
            fault.examples.append(example)

    def found(self) -> list[Fault]:
        return list(self._kinds.values())

    def as_json(self) -> list[dict[str, Any]]:
        return [asdict(fault) for fault in self.found()]


def images_left_out(faults: Iterable[Fault]) -> str:
    """In words which images are left out and why; "" where none is."""
    found = [fault for fault in faults if fault.image]
    why = ", ".join(f"{fault.kind} ({fault.count}, as {fault.examples[0]})" for fault in found)
    return f"{sum(fault.count for fault in found)} images are left out with their boxes: {why}" if found else ""
