"""Box measures against their definitions, written out one pair at a time."""

import pytest
import torch

from leandetr.boxes import pairwise_giou, pairwise_l1, to_corners


@pytest.fixture
def boxes():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(5, 4, generator=generator) * 0.4 + 0.2, torch.rand(3, 4, generator=generator) * 0.4 + 0.2


def area(x0, y0, x1, y1):
    return max(x1 - x0, 0) * max(y1 - y0, 0)


def plain_giou(a, b):
    """Rezatofighi et al., CVPR 2019: IoU minus the part of the enclosing box that neither covers."""
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = (
        (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2) for cx, cy, w, h in (a.tolist(), b.tolist())
    )
    both = area(max(ax0, bx0), max(ay0, by0), min(ax1, bx1), min(ay1, by1))
    either = area(ax0, ay0, ax1, ay1) + area(bx0, by0, bx1, by1) - both
    around = area(min(ax0, bx0), min(ay0, by0), max(ax1, bx1), max(ay1, by1))
    return both / either - (around - either) / around


def test_corners():
    assert to_corners(torch.tensor([[[0.5, 0.5, 0.2, 0.4]]]))[0, 0].tolist() == pytest.approx([0.4, 0.3, 0.6, 0.7])


def test_pairwise_measures_equal_their_definitions(boxes):
    a, b = boxes
    l1 = torch.tensor([[sum(abs(x - y) for x, y in zip(p.tolist(), q.tolist())) for q in b] for p in a])
    giou = torch.tensor([[plain_giou(p, q) for q in b] for p in a])
    torch.testing.assert_close(pairwise_l1(a, b), l1, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(pairwise_giou(a, b), giou, rtol=1e-4, atol=1e-5)


def test_boxes_far_apart_approach_minus_one():
    apart = pairwise_giou(torch.tensor([[0.1, 0.1, 1e-3, 1e-3]]), torch.tensor([[0.9, 0.9, 1e-3, 1e-3]]))
    assert -1 <= apart.item() < -0.99


def test_no_boxes(boxes):
    none = torch.zeros(0, 4)
    assert pairwise_l1(none, boxes[0]).shape == pairwise_giou(none, boxes[0]).shape == (0, 5)
