"""What is wrong with single entries of a data set: listed with counts and a few examples, whatever the layout."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Fault:
    """One kind of fault: how often it occurs, and where, for the first few times."""

    kind: str
    count: int = 0
    examples: list[str] = field(default_factory=list)


class Faults:
    """Faults by kind, in the order of their first occurrence. most: examples that are kept of each."""

    def __init__(self, most: int = 3) -> None:
        self.most = most
        self._kinds: dict[str, Fault] = {}

    def add(self, kind: str, example: str, count: int = 1) -> None:
        fault = self._kinds.setdefault(kind, Fault(kind))
        fault.count += count
        if len(fault.examples) < self.most:
            fault.examples.append(example)

    def found(self) -> list[Fault]:
        return list(self._kinds.values())

    def as_json(self) -> list[dict[str, Any]]:
        return [asdict(fault) for fault in self.found()]
