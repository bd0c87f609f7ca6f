"""Integers of 2 to 8 bits in as few bytes as they need.

The values lie one after the other in a stream of bits, in two's complement, the lowest bits of a byte first:

| bits | values in bytes | the same as |
|---|---|---|
| 2 | 4 in 1 | ONNX's INT2 |
| 3 | 8 in 3 | |
| 4 | 2 in 1, the first in the lower half | ONNX's INT4 |
| 5, 6, 7 | 8 in 5, 4 in 3, 8 in 7 | |
| 8 | 1 in 1 | int8 |
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd, prod

import torch
from torch import Tensor


def packed_bytes(values: int, bits: int) -> int:
    """How many bytes that many values take."""
    return (values * bits + 7) // 8


def pack(integers: Tensor, bits: int) -> Tensor:
    """Signed integers (any shape) of an integer type, -2^(bits-1) <= value < 2^(bits-1) -> (bytes,) uint8.

    What is left of the last byte is zero. Values out of range lose their upper bits, without a word: who packs has clamped.

    >>> pack(torch.tensor([1, -1, 7, -8]), bits=4).tolist()
    [241, 135]
    """
    values, width = _unit(bits)
    flat = integers.flatten().long() & (2**bits - 1)
    units = torch.nn.functional.pad(flat, (0, -len(flat) % values)).reshape(-1, values)
    words = (units << _steps(values, bits, flat)).sum(1, keepdim=True)
    stream = (words >> _steps(width, 8, flat)) & 255
    return stream.to(torch.uint8).flatten()[: packed_bytes(len(flat), bits)]


def unpack(packed: Tensor, bits: int, shape: Sequence[int]) -> Tensor:
    """What `pack` packed: (bytes,) uint8 -> `shape` int8.

    >>> unpack(torch.tensor([241, 135], dtype=torch.uint8), bits=4, shape=(2, 2)).tolist()
    [[1, -1], [7, -8]]
    """
    values, width = _unit(bits)
    stream = torch.nn.functional.pad(packed, (0, -len(packed) % width)).reshape(-1, width)
    if width == 1:  # arithmetic in one byte is several times faster
        found = stream.view(torch.int8)
    else:
        stream = stream.long()
        found = (stream << _steps(width, 8, stream)).sum(1, keepdim=True)
    size = 8 * found.element_size()
    # up to the sign bit and down again, which brings copies of the sign along
    found = (found << (size - bits - _steps(values, bits, found))) >> (size - bits)
    return found.flatten()[: prod(shape)].reshape(tuple(shape)).to(torch.int8)


def _unit(bits: int) -> tuple[int, int]:
    """The smallest number of values that fills whole bytes, and how many bytes."""
    common = gcd(bits, 8)
    return 8 // common, bits // common


def _steps(count: int, width: int, like: Tensor) -> Tensor:
    """0, width, 2 width, ..., of the integer type and on the device of `like`."""
    return torch.arange(count, dtype=like.dtype, device=like.device) * width
