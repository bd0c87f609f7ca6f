"""Bilinear sampling as picked rows: PyTorch's numbers, wherever a point lies, and nothing else touched."""

import pytest
import torch
from torch.nn.functional import grid_sample

from leandetr.deployment.folding import folded_graph
from leandetr.deployment.pytorch import PlainDetector
from leandetr.deployment.sampling import pick_rows, sample

aten = torch.ops.aten


def points(*shape):
    """Inside, on the borders, a cell outside and far away."""
    edges = torch.tensor([-1e4, -1.3, -1.0, 0.0, 1.0, 1.3, 1e4])
    return torch.where(torch.rand(*shape, 2) < 0.3, edges[torch.randint(7, (*shape, 2))], torch.randn(*shape, 2))


@pytest.mark.parametrize(("height", "width"), [(7, 9), (1, 4), (1, 1)])
def test_numbers_are_those_of_grid_sample(height, width):
    pixels, places = torch.randn(3, 5, height, width), points(3, 40, 8)
    torch.testing.assert_close(sample(pixels, places), grid_sample(pixels, places, align_corners=False))


class Sampling(torch.nn.Module):
    """Of a map at places whose axes come swapped; and twice otherwise, which stays."""

    def forward(self, pixels):
        places = pixels[:, :2].tanh().permute(0, 3, 2, 1) * 1.2
        ours = grid_sample(pixels, places, align_corners=False)
        nearest = grid_sample(pixels, places, mode="nearest", align_corners=False)
        return ours + nearest + grid_sample(pixels, places, padding_mode="border", align_corners=True)


def sampled(graph):
    return sum(node.target is aten.grid_sampler.default for node in graph.graph.nodes)


def test_what_is_sampled_otherwise_stays():
    model, pixels = Sampling(), torch.randn(1, 3, 6, 6)
    graph = folded_graph(model, pixels)
    pick_rows(graph)
    assert sampled(graph) == 2
    other = torch.randn_like(pixels)
    torch.testing.assert_close(graph(other), model(other))


@pytest.mark.parametrize("name", ["rt_detr_v2", pytest.param("adamixer", marks=pytest.mark.slow)])
def test_a_detector_answers_as_before(tiny_detector, name):
    model, pixels = PlainDetector(tiny_detector(name)).eval(), torch.randn(1, 3, 128, 128)
    graph = folded_graph(model, pixels)
    assert sampled(graph)
    pick_rows(graph)
    assert not sampled(graph)
    other = torch.randn_like(pixels)
    for ours, theirs in zip(graph(other), model(other), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
