"""Packed integers come back, take the bytes they should, and lie in them as ONNX lays out its own."""

import onnx
import pytest
import torch

from leandetr.quantization.layers.packing import pack, packed_bytes, unpack


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("shape", [(1,), (5,), (3, 7), (4, 2, 3, 3), (0,)])
def test_what_was_packed_comes_back(bits, shape):
    generator = torch.Generator().manual_seed(bits)
    integers = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), shape, generator=generator, dtype=torch.int8)
    packed = pack(integers, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (packed_bytes(integers.numel(), bits),)
    torch.testing.assert_close(unpack(packed, bits, shape), integers, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("bits", "values", "size"), [(2, 8, 2), (3, 8, 3), (3, 9, 4), (4, 2, 1), (4, 3, 2), (6, 4, 3), (8, 5, 5)]
)
def test_bytes_are_as_few_as_the_bits_need(bits, values, size):
    assert packed_bytes(values, bits) == size


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_stream_is_that_of_a_plain_loop(bits):
    generator = torch.Generator().manual_seed(0)
    integers = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (11,), generator=generator)
    number = 0
    for position, value in enumerate(integers.tolist()):
        number |= (value % 2**bits) << (position * bits)
    assert bytes(pack(integers, bits).tolist()) == number.to_bytes(packed_bytes(11, bits), "little")


def test_four_bits_lie_as_in_onnx():
    integers = torch.tensor([1, -1, 7, -8, 3])
    tensor = onnx.helper.make_tensor("w", onnx.TensorProto.INT4, [5], integers.tolist())
    theirs = tensor.raw_data or bytes(value & 255 for value in tensor.int32_data)
    assert bytes(pack(integers, 4).tolist()) == theirs
