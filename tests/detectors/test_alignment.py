"""Aligned queries have mean 0 and variance 1 in every head, train, save, load and export, and leave alone what they do not
reach."""

import pytest
import torch
from torch import nn

from leandetr.deployment.onnx import export_onnx
from leandetr.deployment.runtimes import OnnxRuntime
from leandetr.detectors.alignment import HeadNorm, align_queries, alignment_of, fit_alignment
from leandetr.detectors.checkpoints.load import load
from leandetr.detectors.create import create
from leandetr.errors import UserError

DENSE = ["detr", "conditional_detr", "smca_detr"]
DEFORMABLE = ["deformable_detr", "rt_detr_v2", "d_fine"]


@pytest.fixture
def pixels():
    return torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))


def noisy(detector):
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in detector.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return detector


def norms(detector, kind="cross"):
    for layer in detector.model.model.decoder.layers:
        attention = detector.family.cross_attention(layer) if kind == "cross" else layer.self_attn
        yield attention.slots.align if hasattr(attention, "slots") else attention.align


@pytest.mark.parametrize("name", DENSE + DEFORMABLE)
def test_queries_have_mean_0_and_variance_1_in_every_head(tiny_detector, pixels, name):
    detector = noisy(tiny_detector(name, backbone="test_resnet"))
    before = detector(pixels).logits
    align_queries(detector.model)
    aligned = []
    for norm in norms(detector):
        assert norm.weight.eq(1).all()
        assert norm.bias.eq(0).all()
        assert norm.eps == 1e-5
        norm.register_forward_hook(lambda norm, _, out: aligned.append(out.unflatten(-1, (-1, *norm.normalized_shape))))
    after = detector(pixels).logits
    assert len(aligned) == 3
    for query in aligned:
        torch.testing.assert_close(query.mean(-1), torch.zeros_like(query[..., 0]), atol=1e-5, rtol=0)
        torch.testing.assert_close(query.var(-1, correction=0), torch.ones_like(query[..., 0]), atol=2e-3, rtol=0)
    assert not torch.allclose(before, after)


def test_heads_are_normalised_one_by_one():
    x = torch.randn(2, 5, 12)
    norm = HeadNorm(4)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    for head in range(3):
        part = x[..., 4 * head : 4 * head + 4]
        deviation = (part.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        want = (part - part.mean(-1, keepdim=True)) / deviation * norm.weight + norm.bias
        torch.testing.assert_close(norm(x)[..., 4 * head : 4 * head + 4], want)


def test_deformable_attention_samples_by_the_aligned_sum_of_content_and_position(tiny_detector, pixels):
    detector = noisy(tiny_detector("deformable_detr", backbone="test_resnet"))
    align_queries(detector.model)
    attention, seen = detector.family.cross_attention(detector.model.model.decoder.layers[0]), {}
    attention.register_forward_pre_hook(lambda _, a, kw: seen.update(kw), with_kwargs=True, prepend=True)
    attention.sampling_offsets.register_forward_pre_hook(lambda _, a: seen.update(offsets=a[0]))
    attention.attention_weights.register_forward_pre_hook(lambda _, a: seen.update(weights=a[0]))
    detector(pixels)
    want = attention.align(seen["hidden_states"] + seen["position_embeddings"])
    torch.testing.assert_close(seen["offsets"], want)
    torch.testing.assert_close(seen["weights"], want)


@pytest.mark.parametrize("name", ["detr", "rt_detr_v2"])
def test_alignment_is_saved_and_loaded(tiny_detector, pixels, labels, name, tmp_path):
    detector = tiny_detector(name, backbone="test_resnet")
    align_queries(detector.model, "both")
    noisy(detector)
    assert len({*map(id, norms(detector)), *map(id, norms(detector, "self"))}) == 6
    detector.save(tmp_path)
    again = load(tmp_path)
    assert alignment_of(again.config) == "both"
    assert type(again.model) is type(detector.model)
    assert torch.equal(again(pixels).logits, detector(pixels).logits)
    objects = labels(2, 1)
    assert torch.equal(again(pixels, labels=objects).loss, detector(pixels, labels=objects).loss)
    again.save(tmp_path / "twice")
    assert torch.equal(load(tmp_path / "twice")(pixels).boxes, detector(pixels).boxes)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["detr", "rt_detr_v2"])
def test_alignment_is_exported(tiny_detector, pixels, name, tmp_path):
    detector = noisy(tiny_detector(name, backbone="test_resnet", decoder_layers=2))
    align_queries(detector.model)
    logits, _ = OnnxRuntime(export_onnx(detector, tmp_path / "model.onnx")).run(pixels, None)
    torch.testing.assert_close(torch.as_tensor(logits), detector(pixels).logits[-1].detach(), atol=1e-3, rtol=1e-3)


def test_scale_and_shift_are_trained(tiny_detector, pixels, labels):
    for name in ("smca_detr", "rt_detr_v2"):
        detector = noisy(tiny_detector(name, backbone="test_resnet")).train()
        align_queries(detector.model)
        detector(pixels, labels=labels(2, 1)).loss.backward()
        assert all(norm.weight.grad.abs().sum() > 0 and norm.bias.grad.abs().sum() > 0 for norm in norms(detector))


@pytest.mark.parametrize("name", ["detr", "rt_detr_v2"])
def test_fitted_scale_and_shift_are_the_least_squares_of_every_channel(tiny_detector, pixels, name):
    """Against a plain solver, on the queries of the model as it was before it was aligned."""
    detector = noisy(tiny_detector(name, backbone="test_resnet"))
    align_queries(detector.model)
    seen = {norm: [] for norm in norms(detector)}
    for norm, queries in seen.items():
        nn.init.normal_(norm.weight)  # what was learned before does not count
        norm.register_forward_pre_hook(lambda _, given, queries=queries: queries.append(given[0]))
    fit_alignment(detector.model, lambda: [detector(part) for part in pixels.split(1)])
    for norm, queries in seen.items():
        assert len(queries) == 2
        queries = torch.cat([query.reshape(-1, *norm.normalized_shape) for query in queries]).double()
        normalised = nn.functional.layer_norm(queries, norm.normalized_shape)
        for channel in range(queries.shape[1]):
            given = torch.stack([normalised[:, channel], torch.ones(len(queries))], 1)
            slope, shift = torch.linalg.lstsq(given, queries[:, channel, None]).solution.flatten()
            torch.testing.assert_close(norm.weight[channel].double(), slope, rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(norm.bias[channel].double(), shift, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", DENSE + DEFORMABLE)
def test_no_query_is_aligned_while_the_alignment_is_fitted(tiny_detector, pixels, name):
    detector = noisy(tiny_detector(name, backbone="test_resnet"))
    before = detector(pixels).logits
    align_queries(detector.model)
    fit_alignment(detector.model, lambda: torch.testing.assert_close(detector(pixels).logits, before))
    assert not torch.allclose(detector(pixels).logits, before)
    assert all(not norm.weight.eq(1).any() for norm in norms(detector))


def test_what_a_model_has_is_kept_and_what_it_cannot_have_refused(tiny_detector):
    model = tiny_detector("detr", backbone="test_resnet").model
    align_queries(model)
    first = model.model.decoder.layers[0].encoder_attn.slots.align
    align_queries(model)
    assert model.model.decoder.layers[0].encoder_attn.slots.align is first
    with pytest.raises(UserError, match="aligned in cross attention already; do not ask for both"):
        align_queries(model, "both")
    with pytest.raises(UserError, match="cross"):
        align_queries(model, "crossed")


def test_a_family_without_reachable_attention_is_refused(classes):
    overrides = {"decoder_layers": 2, "num_queries": 12, "decoder_ffn_dim": 64, "d_model": 32}
    detector = create("adamixer", classes, (64, 64), backbone="test_resnet", overrides=overrides)
    with pytest.raises(UserError, match="queries of adamixer cannot be aligned in cross attention"):
        align_queries(detector.model)
    align_queries(detector.model, "self")
