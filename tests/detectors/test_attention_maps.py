"""Attention maps are what attention does: how much each cell's value counts in what a query gathers."""

import pytest
import torch

from leandetr.detectors.attention_maps import splat


def moved(detector):
    """With weights off their initial values, where zeros hide faults."""
    with torch.no_grad():
        for parameter in detector.model.model.decoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return detector


@pytest.fixture
def padded():
    torch.manual_seed(1)
    mask = torch.ones(2, 128, 128, dtype=torch.int64)
    mask[1, :, 96:] = 0
    return torch.randn(2, 3, 128, 128) * mask[:, None], mask


def derivative(gathered, value, heads):
    """(B, N, S): how the mean over the heads of a gathered channel depends on that channel of the values."""
    rows = []
    for query in range(gathered.shape[1]):
        by_head = gathered[:, query].unflatten(-1, (heads, -1))[..., 0].mean(1)
        (gradient,) = torch.autograd.grad(by_head.sum(), value, retain_graph=True)
        rows.append(gradient.unflatten(-1, (heads, -1))[..., 0].sum(-1))
    return torch.stack(rows, 1)


@pytest.mark.parametrize(
    ("name", "which", "projection"),
    [
        ("detr", "cross_attention", "v_proj"),
        ("detr", "self_attention", "v_proj"),
        ("smca_detr", "cross_attention", "v_proj"),
        ("deformable_detr", "cross_attention", "value_proj"),
        ("rt_detr", "self_attention", "v_proj"),
        ("rt_detr", "cross_attention", "value_proj"),
        ("rt_detr_v2", "cross_attention", "value_proj"),
        ("lw_detr", "cross_attention", "value_proj"),
    ],
)
def test_a_map_is_the_derivative_of_what_is_gathered(tiny_detector, padded, name, which, projection):
    detector = moved(tiny_detector(name))
    layer = detector.model.model.decoder.layers[1]
    attention = getattr(detector.family, which)(layer)
    out = "output_proj" if projection == "value_proj" else "o_proj"
    seen = {}
    getattr(attention, projection).register_forward_hook(lambda _m, _i, output: seen.update(value=output))
    getattr(attention, out).register_forward_pre_hook(lambda _m, given: seen.update(gathered=given[0]))
    heads = attention.n_heads if hasattr(attention, "n_heads") else attention.config.decoder_attention_heads
    maps = getattr(detector(*padded, asked={which}), which)[1]
    found = derivative(seen["gathered"], seen["value"], heads)
    found = found / found.sum(-1, keepdim=True)  # what is sampled outside of the image counts nothing
    torch.testing.assert_close(maps, found, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["detr", "conditional_detr", "dab_detr", "deformable_detr", "d_fine", "rf_detr", "adamixer"])
def test_rows_sum_to_one_and_asking_changes_no_answer(tiny_detector, padded, name):
    detector = tiny_detector(name)
    both = {"self_attention", "cross_attention"}
    output, plain = detector(*padded, asked=both), detector(*padded)
    torch.testing.assert_close(output.logits, plain.logits, atol=1e-4, rtol=1e-4)
    assert plain.self_attention is None
    layers, images, queries = output.hidden.shape[:3]
    shapes = {
        "self_attention": (layers, images, queries, queries),
        "cross_attention": (layers, images, queries, output.memory.tokens.shape[1]),
    }
    for field, shape in shapes.items():
        maps = getattr(output, field)
        if name == "adamixer" and field == "cross_attention":
            assert maps is None
            continue
        assert maps.shape == shape
        torch.testing.assert_close(maps.sum(-1), torch.ones(shape[:3]), atol=1e-3, rtol=0)
        again = getattr(detector.decode(output.queries, output.memory, asked=both), field)
        torch.testing.assert_close(again, maps, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["rt_detr", "lw_detr"])
def test_queries_for_training_alone_are_in_no_map(tiny_detector, padded, labels, name):
    detector = tiny_detector(name).train()
    output = detector(*padded, labels=labels(2, 1), asked={"self_attention", "cross_attention"})
    torch.testing.assert_close(output.self_attention.sum(-1), torch.ones(3, 2, 12), atol=1e-4, rtol=0)
    assert output.self_attention.shape == (3, 2, 12, 12)
    assert output.cross_attention.shape[:3] == (3, 2, 12)
    output.cross_attention.square().sum().backward()
    assert output.memory.tokens.shape[1] == output.cross_attention.shape[-1]


def test_points_are_shared_out_as_a_loop_does():
    torch.manual_seed(0)
    shapes, points = [(3, 5), (2, 2)], [2, 1]
    places, weights = torch.rand(2, 3, 4, 3, 2) * 1.4 - 0.2, torch.rand(2, 3, 4, 3).softmax(-1)
    expected = torch.zeros(2, 3, 19)
    for b, n, h, p in torch.cartesian_prod(*(torch.arange(size) for size in (2, 3, 4, 3))).tolist():
        (height, width), start = (shapes[0], 0) if p < 2 else (shapes[1], 15)
        x, y = (places[b, n, h, p] * torch.tensor([width, height]) - 0.5).tolist()
        for row in range(height):
            for column in range(width):
                share = max(0.0, 1 - abs(x - column)) * max(0.0, 1 - abs(y - row))
                expected[b, n, start + row * width + column] += weights[b, n, h, p] * share / 4
    torch.testing.assert_close(splat(places, weights, points, shapes), expected)
