"""The matcher promises the cheapest pairs, as a search over all assignments finds them, from one copy, whatever the input."""

from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from leandetr.heads import Head
from leandetr.losses import HungarianMatcher, assign, matcher, pad_targets, solve
from leandetr.losses.matcher import UNUSABLE, linear_assignment


def cheapest(cost: Tensor) -> float:
    """The least cost of a one-to-one assignment, by trying them all."""
    few, many = sorted(cost.shape)
    wide = cost if cost.shape == (few, many) else cost.T
    return min(sum(wide[i, j].item() for i, j in enumerate(chosen)) for chosen in permutations(range(many), few))


def target(classes: list[int], boxes: Tensor) -> dict[str, Tensor]:
    return {"class_labels": torch.tensor(classes, dtype=torch.int64), "boxes": boxes}


@pytest.mark.parametrize(
    ("queries", "columns", "sizes"),
    [(5, 3, [3, 1]), (3, 5, [5, 4]), (4, 4, [0, 4]), (4, 0, [0, 0])],
    ids=["fewer targets", "more targets", "an image without any", "no targets at all"],
)
def test_assignment_is_the_cheapest_and_ignores_padding(queries, columns, sizes):
    torch.manual_seed(0)
    cost = torch.randn(2, 2, queries, columns)
    found = assign(cost, sizes)
    for layer in range(2):
        for image, size in enumerate(sizes):
            here = (found.layers == layer) & (found.images == image)
            rows, chosen = found.queries[here], found.targets[here]
            assert len(rows) == len(set(rows.tolist())) == len(set(chosen.tolist())) == min(queries, size)
            assert (chosen < size).all()
            expected = cheapest(cost[layer, image, :, :size]) if size else 0.0
            assert cost[layer, image, rows, chosen].sum().item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
def test_unusable_costs_are_taken_last(broken):
    cost = torch.tensor([[[[broken, broken, broken], [0.0, 1.0, 0.0], [5.0, 0.0, 3.0]]]])
    found = assign(cost, [3])
    assert found.targets.tolist() == [0, 2, 1]


def test_all_layers_and_images_leave_the_device_in_one_copy(monkeypatch):
    copies = []
    real = Tensor.cpu
    monkeypatch.setattr(Tensor, "cpu", lambda self: copies.append(self.shape) or real(self))
    hungarian = HungarianMatcher(1.0, 5.0, 2.0, Head.SOFTMAX)
    targets = pad_targets([target([0, 1], torch.rand(2, 4)), target([], torch.zeros(0, 4))])
    hungarian(torch.randn(6, 2, 7, 4), torch.rand(6, 2, 7, 4), targets)
    assert len(copies) == 1


@pytest.mark.parametrize("head", Head)
def test_cost_equals_the_definition(head):
    torch.manual_seed(0)
    logits, boxes = torch.randn(2, 1, 3, 4), torch.rand(2, 1, 3, 4) * 0.4 + 0.2
    objects = target([2, 0], torch.rand(2, 4) * 0.4 + 0.2)
    cost = HungarianMatcher(3.0, 5.0, 2.0, head).cost(logits, boxes, pad_targets([objects]))
    for layer in range(2):
        for query in range(3):
            for column in range(2):
                label = objects["class_labels"][column]
                if head == Head.SOFTMAX:
                    by_class = -logits[layer, 0, query].softmax(-1)[label]
                else:
                    p = logits[layer, 0, query].sigmoid()[label]
                    by_class = -0.25 * (1 - p) ** 2 * p.log() + 0.75 * p**2 * (1 - p).log()
                a, b = boxes[layer, 0, query], objects["boxes"][column]
                expected = 3 * by_class + 5 * (a - b).abs().sum() - 2 * giou(a, b)
                torch.testing.assert_close(cost[layer, 0, query, column], expected)


def giou(a: Tensor, b: Tensor) -> Tensor:
    (ax, ay, aw, ah), (bx, by, bw, bh) = a, b
    left, right = torch.stack([ax - aw / 2, bx - bw / 2]), torch.stack([ax + aw / 2, bx + bw / 2])
    top, bottom = torch.stack([ay - ah / 2, by - bh / 2]), torch.stack([ay + ah / 2, by + bh / 2])
    common = (right.min() - left.max()).clamp(min=0) * (bottom.min() - top.max()).clamp(min=0)
    union, hull = aw * ah + bw * bh - common, (right.max() - left.min()) * (bottom.max() - top.min())
    return common / union - (hull - union) / hull


@pytest.mark.parametrize("shape", [(40, 36), (36, 40), (40, 40), (100, 7)])
@pytest.mark.parametrize("alike", [False, True], ids=["random", "nearly alike"])
def test_the_prepared_solver_finds_scipys_optimum(shape, alike):
    generator = np.random.default_rng(0)
    cost = generator.random(shape)
    if alike:  # rows and columns that are dear as a whole, and hardly differ otherwise
        cost = 1e-3 * cost + 5 * generator.random((shape[0], 1)) + 3 * generator.random((1, shape[1]))
    cost[3, 4] = UNUSABLE
    rows, columns = linear_assignment(cost)
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert len(set(columns.tolist())) == len(rows) == min(shape)
    best = linear_sum_assignment(cost)
    np.testing.assert_allclose(cost[rows, columns].sum(), cost[best].sum(), rtol=1e-9)


def test_threads_change_nothing(monkeypatch):
    cost = torch.rand(3, 4, 64, 60).numpy()
    columns = [[np.arange(size) for size in (60, 0, 41, 3)]] * 3
    alone = solve(cost, columns)
    monkeypatch.setattr(matcher, "WORTH_THREADS", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert np.array_equal(solve(cost, columns), alone)
