"""A size that a detector cannot answer is said with its cause and the smallest that it can."""

import pytest
import torch

from leandetr.detectors.image_size import check_answers
from leandetr.errors import UserError


def smallest(detector, sizes):
    """By trying all, one after the other."""
    for size in sizes:
        try:
            with torch.no_grad():
                detector.model(pixel_values=torch.zeros(1, 3, *size))
            return size
        except (RuntimeError, ValueError):
            continue
    return None


@pytest.mark.parametrize(
    ("name", "overrides", "size", "sizes", "cause"),
    [
        (
            "rt_detr_v2",
            {"num_queries": 300},
            (64, 96),
            [(32 * n, 32 * -(-3 * n // 2)) for n in range(2, 9)],
            "among the 126 cells of",
        ),
        ("lw_detr", {"num_queries": 40}, (64, 64), [(64 * n, 64 * n) for n in range(1, 9)], "among the 16 cells of"),
        ("deformable_detr", {"d_model": 32}, (32, 32), [(n, n) for n in range(32, 99)], "its coarsest map has one cell"),
    ],
)
def test_the_cause_and_the_smallest_size(tiny_detector, name, overrides, size, sizes, cause):
    detector = tiny_detector(name, **overrides)
    with pytest.raises(UserError, match=rf"m: .*{cause}") as caught:
        check_answers(detector, size, "m")
    height, width = smallest(detector, sizes)
    assert str(caught.value).endswith(f"an image of at least {height} {width}")
    assert "\n" not in str(caught.value)
    check_answers(detector, (height, width), "m")
