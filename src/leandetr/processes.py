"""The processes that `torchrun` or `accelerate launch` started together, on one machine or several: which one this is, and its
share of their work. A process that was started alone is the first of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from rich.console import Console

T = TypeVar("T")

PATIENCE = timedelta(days=1)  # that a process which is done has for the others; PyTorch's ten minutes end a long labelling


def processes() -> PartialState:
    """Number and count of the processes; the first call joins them."""
    return PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)


def is_main() -> bool:
    """Whether this is the first process, which alone speaks and writes what all have made."""
    return processes().is_main_process


def say(text: str) -> None:
    """A line beside the output, once."""
    if is_main():
        Console(stderr=True, highlight=False).print(text, markup=False, soft_wrap=True)


def wait() -> None:
    """Until every process has come here."""
    processes().wait_for_everyone()


def share(work: Sequence[T]) -> list[T]:
    """This process's part of a list that is the same in all of them: every N-th piece."""
    state = processes()
    return list(work[state.process_index :: state.num_processes])


def gathered(own: T) -> list[T]:
    """Every process's value, in the order of the processes."""
    state = processes()
    values: list[Any] = [own] * state.num_processes
    if state.num_processes > 1:
        torch.distributed.all_gather_object(values, own)
    return values


def blocks(count: int, size: int) -> list[range]:
    """So many items in blocks of a size, the last one maybe smaller.

    >>> blocks(5, 2)
    [range(0, 2), range(2, 4), range(4, 5)]
    """
    return [range(first, min(first + size, count)) for first in range(0, count, size)]
