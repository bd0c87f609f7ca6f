"""SwinDETR: token counts, any image size, padding, gradients, saving, the decoder replayed, ONNX."""

import copy

import pytest
import torch
from transformers import AutoModelForObjectDetection, SwinConfig
from transformers.models.swin.modeling_swin import SwinBackbone

from leandetr.detectors.models.swin_detr import SWINS, SwinDetrConfig, SwinDetrForObjectDetection
from leandetr.errors import UserError

SMALL = {
    "num_labels": 5, "num_queries": 12, "d_model": 32, "encoder_layers": 1, "decoder_layers": 3, "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
}  # fmt: skip


def swin(window_size: int = 4) -> SwinConfig:
    # blocks come in pairs, the second with shifted windows
    return SwinConfig(embed_dim=8, depths=[2, 1, 2, 1], num_heads=[1, 2, 2, 2], window_size=window_size)


def build(**overrides) -> SwinDetrForObjectDetection:
    torch.manual_seed(0)
    overrides.setdefault("backbone_config", swin())
    return SwinDetrForObjectDetection(SwinDetrConfig(**(SMALL | overrides))).eval()


@pytest.fixture(scope="module")
def model() -> SwinDetrForObjectDetection:
    return build()


@pytest.mark.parametrize(
    ("stages", "tokens"), [([4], 49), ([2, 3, 4], 784 + 196 + 49), ([3], 196), ([1, 4], 3136 + 49)], ids=str
)
@torch.no_grad()
def test_tokens_of_the_chosen_stages_at_224(stages, tokens):
    model = build(stages=stages, backbone_config=swin(window_size=7))
    assert model(torch.randn(1, 3, 224, 224)).encoder_last_hidden_state.shape == (1, tokens, 32)


def test_every_layer_answers(model):
    with torch.no_grad():
        output = model(torch.randn(2, 3, 64, 96))
    assert output.intermediate_logits.shape == (3, 2, 12, 6)
    assert output.intermediate_boxes.shape == (3, 2, 12, 4)
    assert torch.equal(output.intermediate_logits[-1], output.logits)
    assert torch.equal(output.intermediate_boxes[-1], output.pred_boxes)
    assert output.pred_boxes.min() >= 0
    assert output.pred_boxes.max() <= 1


@torch.no_grad()
def test_without_padding_the_backbone_is_transformers_swin():
    ours = build().model.backbone
    plain = SwinBackbone(ours.config).eval()
    plain.load_state_dict(ours.model.state_dict(), strict=False)
    pixels = torch.randn(2, 3, 128, 128)  # 32, 16, 8 and 4 cells: windows of 4 are all full
    for (features, mask), expected in zip(ours(pixels, torch.ones(2, 128, 128)), plain(pixels).feature_maps, strict=True):
        assert mask is None
        assert torch.equal(features, expected)


@pytest.mark.parametrize("size", [(93, 70), (64, 64), (61, 118), (33, 128)], ids=str)
@pytest.mark.parametrize("stages", [[2, 3, 4], [4]], ids=str)
@torch.no_grad()
def test_output_does_not_depend_on_padding(stages, size):
    model, (height, width) = build(stages=stages), size
    image = torch.randn(1, 3, height, width)
    pixels, mask = torch.randn(2, 3, 150, 161), torch.zeros(2, 150, 161, dtype=torch.long)
    pixels[0, :, :height, :width], mask[0, :height, :width], mask[1] = image[0], 1, 1
    alone, padded = model(image), model(pixels, mask)
    assert (alone.logits[0] - padded.logits[0]).abs().max() < 1e-4
    assert (alone.pred_boxes[0] - padded.pred_boxes[0]).abs().max() < 1e-4


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_every_parameter(labels, checkpointing):
    model, targets = build().train(), labels(3, 0)  # the second image has no object
    if checkpointing:
        model.gradient_checkpointing_enable()
    pixels, mask = torch.randn(2, 3, 64, 96), torch.ones(2, 64, 96, dtype=torch.long)
    mask[1, 40:] = 0
    model(pixels, mask, targets).loss.backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    # DETR's queries start as zeros, so that its first self-attention has equal values everywhere and learns only later
    zero = {n for n, p in model.named_parameters() if not p.grad.any() and "decoder.layers.0.self_attn" not in n}
    assert zero <= {n for n in zero if n.endswith("k_proj.bias")}  # softmax cancels what all keys have in common


def test_loss_counts_every_layer(model, labels):
    output = model(torch.randn(2, 3, 64, 64), labels=labels(2, 1))
    parts = output.loss_dict
    expected = sum(
        parts[f"loss_ce{layer}"] + 5 * parts[f"loss_bbox{layer}"] + 2 * parts[f"loss_giou{layer}"] for layer in ("", "_0", "_1")
    )
    torch.testing.assert_close(output.loss, expected)


def test_saved_and_loaded_by_the_auto_class_is_equal(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = AutoModelForObjectDetection.from_pretrained(tmp_path).eval()
    pixels = torch.randn(1, 3, 70, 100)
    assert isinstance(again, SwinDetrForObjectDetection)
    with torch.no_grad():
        assert torch.equal(model(pixels).logits, again(pixels).logits)


@torch.no_grad()
def test_decoder_replays_and_takes_other_queries(model):
    decoder, call = model.model.decoder, {}
    hook = decoder.register_forward_pre_hook(lambda _module, _args, kwargs: call.update(kwargs), with_kwargs=True)
    output = model(torch.randn(2, 3, 64, 96))
    hook.remove()
    assert torch.equal(decoder(**call).intermediate_hidden_states, output.intermediate_hidden_states)
    assert call["spatial_shapes_list"] == [(8, 12), (4, 6), (2, 3)]
    queries = ("inputs_embeds", "object_queries_position_embeddings")
    fewer = decoder(**{name: value[:, :7] if name in queries else value for name, value in call.items()})
    assert fewer.last_hidden_state.shape == (2, 7, 32)
    more = decoder(**{name: value.repeat(1, 2, 1) if name in queries else value for name, value in call.items()})
    torch.testing.assert_close(more.last_hidden_state[:, :12], more.last_hidden_state[:, 12:])  # a set beside its own copy


def test_stages_after_the_last_chosen_one_are_not_built():
    model = build(stages=[2, 3])
    assert len(model.model.backbone.model.swin.encoder.layers) == 3


@pytest.mark.parametrize("stages", [[], [5], [0, 1], [3, 2], [2, 2], [-1]], ids=str)
def test_wrong_stages_are_refused(stages):
    with pytest.raises(UserError, match=r"stages .*between 1 and 4"):
        SwinDetrConfig(stages=stages)


def test_unknown_swin_is_refused_with_the_nearest():
    with pytest.raises(UserError, match="swin_base"):
        SwinDetrConfig(backbone="swin_bas")


@pytest.mark.parametrize("name", SWINS)
def test_named_swins_have_the_published_sizes(name):
    """Millions of parameters without the class head: 27.5, 48.8 and 86.7 (Liu et al., table 1, minus 1000 classes)."""
    with torch.device("meta"):
        backbone = SwinBackbone(SwinDetrConfig(backbone=name).backbone_config)
    millions = sum(p.numel() for p in backbone.parameters()) / 1e6
    assert millions == pytest.approx({"swin_tiny": 27.5, "swin_small": 48.8, "swin_base": 86.7}[name], rel=0.01)


def test_too_small_an_image_is_refused(model):
    with pytest.raises(UserError, match="coarsest stride 32"):
        model(torch.randn(1, 3, 64, 31))


@pytest.mark.parametrize(("limit", "warns"), [(84, False), (83, True)])
@torch.no_grad()
def test_warns_beyond_the_token_limit(limit, warns, recwarn):
    build(max_tokens=limit)(torch.randn(1, 3, 64, 64))  # 64 + 16 + 4 tokens
    assert any("84 tokens" in str(warning.message) for warning in recwarn) == warns


@pytest.mark.slow
def test_onnx_agrees_for_any_batch(agrees_in_onnx):
    two = SwinConfig(embed_dim=8, depths=[2, 1], num_heads=[1, 1], window_size=4)
    model = build(decoder_layers=1, stages=[1, 2], backbone_config=two)  # shifted windows, filled windows, two levels
    agrees_in_onnx(model, (32, 40))


@pytest.mark.slow
def test_compiled_by_inductor_it_trains_as_uncompiled(labels):
    two = SwinConfig(embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4, drop_path_rate=0.0)
    plain = build(stages=[1, 2], backbone_config=two, decoder_layers=2, dropout=0.0).train()
    compiled, pixels, targets = copy.deepcopy(plain), torch.randn(2, 3, 64, 64), labels(1, 2)
    losses = [model(pixels, labels=targets).loss for model in (plain, torch.compile(compiled, backend="inductor"))]
    torch.testing.assert_close(losses[1], losses[0])
    for loss in losses:
        loss.backward()
    for expected, parameter in zip(plain.parameters(), compiled.parameters(), strict=True):
        if expected.grad is not None:
            torch.testing.assert_close(parameter.grad, expected.grad, atol=2e-3, rtol=1e-3)
