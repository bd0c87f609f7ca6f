"""SMCA-DETR: its Gaussian against a loop, plain attention at scale zero, padding, gradients, saving, replay, ONNX."""

import pytest
import torch
from transformers import AutoModelForObjectDetection, ResNetConfig
from transformers.models.detr.modeling_detr import DetrDecoderLayer

from leandetr.detectors.models.masked_backbones import feature_stride
from leandetr.detectors.models.smca_detr import SCALES, SmcaDetrConfig, SmcaDetrForObjectDetection, log_gaussian
from leandetr.errors import UserError

SMALL = {
    "num_labels": 5, "num_queries": 12, "d_model": 32, "encoder_layers": 1, "decoder_layers": 3, "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
}  # fmt: skip


def resnet(*stages: str) -> ResNetConfig:
    return ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 24, 32, 40], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=list(stages or ["stage4"]),
    )  # fmt: skip


def build(**overrides) -> SmcaDetrForObjectDetection:
    torch.manual_seed(0)
    overrides.setdefault("backbone_config", resnet())
    model = SmcaDetrForObjectDetection(SmcaDetrConfig(**(SMALL | overrides))).eval()
    for layer in model.model.decoder.layers:
        if layer.scale is not None:
            torch.nn.init.normal_(layer.scale.weight, std=0.1)  # untrained scales are 1 whatever the query
    return model


@pytest.fixture(scope="module")
def model() -> SmcaDetrForObjectDetection:
    return build()


@pytest.mark.parametrize("variant", SCALES)
def test_log_gaussian_equals_the_formula_cell_by_cell(variant):
    generator = torch.Generator().manual_seed(0)
    height, width, smooth = 3, 5, 8
    points = torch.rand(4, 2, generator=generator) * 6 - 1
    scales = torch.rand(4, SCALES[variant], generator=generator) * 3
    bias = log_gaussian(points, scales, (height, width), smooth)
    for (px, py), scale, row in zip(points.tolist(), scales.tolist(), bias, strict=True):
        for gy in range(height):
            for gx in range(width):
                x, y = (px - gx) ** 2, (py - gy) ** 2
                sx, sy, sxy = {0: [1, 1, 0], 1: [*scale, *scale, 0], 2: [*scale, 0], 3: scale}[len(scale)]
                distance = sx * x + sy * y + sxy * x * y
                assert row[gy * width + gx].item() == pytest.approx(-distance / smooth, rel=1e-5, abs=1e-6)


def layer_arguments(layer, queries: int = 12, cells: tuple[int, int] = (3, 4)) -> dict:
    generator = torch.Generator().manual_seed(1)

    def tokens(count: int) -> torch.Tensor:
        return torch.randn(2, count, layer.hidden_size, generator=generator)

    keys = cells[0] * cells[1]
    return {
        "hidden_states": tokens(queries),
        "attention_mask": None,
        "spatial_position_embeddings": tokens(keys),
        "object_queries_position_embeddings": tokens(queries),
        "encoder_hidden_states": tokens(keys),
    }


@pytest.mark.parametrize("variant", ["single", "independent", "cross"])
@torch.no_grad()
def test_scale_zero_is_plain_attention(variant):
    layer = build(scale=variant).model.decoder.layers[0]
    arguments = layer_arguments(layer)
    modulation = {"encoder_attention_mask": None, "centre": torch.rand(2, 12, 2) * 3, "cells": (3, 4)}
    plain = DetrDecoderLayer.forward(layer, **arguments)
    assert (layer(**arguments, **modulation) - plain).abs().max() > 1e-3
    torch.nn.init.zeros_(layer.scale.weight)
    torch.nn.init.zeros_(layer.scale.bias)
    torch.testing.assert_close(layer(**arguments, **modulation), plain)


@torch.no_grad()
def test_heads_have_their_own_points_around_the_centre():
    """Query n in head h: the Gaussian at centre + offset_h(u) with the squares of scale_h(u), u = LN(content + position)."""
    layer = build().model.decoder.layers[1]
    queries, centre = torch.randn(1, 2, 32), torch.tensor([[[0.5, 1.0], [2.0, 0.2]]])
    bias = layer.modulation(queries, centre, (2, 3))
    normed = layer.query_norm(queries)
    offsets, scales = layer.offset(normed)[0], layer.scale(normed)[0]
    for n in range(2):
        for head in range(4):
            point = centre[0, n] + offsets[n, 2 * head : 2 * head + 2]
            scale = scales[n, 2 * head : 2 * head + 2] ** 2
            torch.testing.assert_close(bias[0, head, n], log_gaussian(point, scale, (2, 3), 8))


@torch.no_grad()
def test_centre_comes_once_from_the_query_and_the_true_image_size(model):
    seen = []
    handles = [
        layer.register_forward_pre_hook(lambda _module, arguments: seen.append(arguments[6]))
        for layer in model.model.decoder.layers
    ]
    mask = torch.zeros(2, 96, 128, dtype=torch.long)
    mask[0, :64, :80], mask[1] = 1, 1
    output = model.model(torch.randn(2, 3, 96, 128), mask)
    for handle in handles:
        handle.remove()
    cells = torch.tensor([[80 / 32, 64 / 32], [128 / 32, 96 / 32]])
    for centre in seen:
        torch.testing.assert_close(centre, output.reference_logits.sigmoid() * cells[:, None])
    assert len(seen) == 3


@pytest.mark.parametrize("stage", ["stage3", "stage4"])
@torch.no_grad()
def test_boxes_are_relative_to_the_centre(stage):
    model = build(backbone_config=resnet(stage))
    trunk = model.model(torch.randn(1, 3, 64, 64))
    logits, boxes = model.heads(trunk.intermediate_hidden_states, trunk.reference_logits)
    raw = model.bbox_predictor(trunk.intermediate_hidden_states)
    torch.testing.assert_close(boxes[..., :2], (raw[..., :2] + trunk.reference_logits).sigmoid())
    torch.testing.assert_close(boxes[..., 2:], raw[..., 2:].sigmoid())
    assert logits.shape == (3, 1, 12, 5)


@pytest.mark.parametrize(
    ("image", "cells", "stride"),
    [((800, 1066), (25, 34), 32), ((97, 33), (4, 2), 32), ((800, 1066), (50, 67), 16), ((64, 64), (1, 1), 64)],
)
def test_stride_is_read_off_the_map(image, cells, stride):
    assert feature_stride(image, cells) == stride


@pytest.mark.parametrize("size", [(93, 70), (64, 64), (61, 118), (33, 128)], ids=str)
@torch.no_grad()
def test_output_does_not_depend_on_padding(model, size):
    height, width = size
    image = torch.randn(1, 3, height, width)
    pixels, mask = torch.randn(2, 3, 150, 161), torch.zeros(2, 150, 161, dtype=torch.long)
    pixels[0, :, :height, :width], mask[0, :height, :width], mask[1] = image[0], 1, 1
    alone, padded = model(image), model(pixels, mask)
    assert (alone.logits[0] - padded.logits[0]).abs().max() < 1e-4
    assert (alone.pred_boxes[0] - padded.pred_boxes[0]).abs().max() < 1e-4


@pytest.mark.parametrize(("scale", "checkpointing"), [("independent", True), ("none", False), ("cross", False)])
def test_gradients_reach_every_parameter(labels, scale, checkpointing):
    model, targets = build(scale=scale).train(), labels(3, 0)  # the second image has no object
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


def test_loss_counts_every_layer_and_the_focal_part_twice(model, labels):
    output = model(torch.randn(2, 3, 64, 64), labels=labels(2, 1))
    parts = output.loss_dict
    expected = sum(
        2 * parts[f"loss_ce{layer}"] + 5 * parts[f"loss_bbox{layer}"] + 2 * parts[f"loss_giou{layer}"]
        for layer in ("", "_0", "_1")
    )
    torch.testing.assert_close(output.loss, expected)


def test_starts_with_rare_classes_and_round_gaussians():
    model = SmcaDetrForObjectDetection(SmcaDetrConfig(**SMALL, backbone_config=resnet()))
    torch.testing.assert_close(model.class_labels_classifier.bias.sigmoid(), torch.full((5,), 0.01))
    for layer in model.model.decoder.layers:
        assert not layer.scale.weight.any()
        assert torch.equal(layer.scale.bias, torch.ones(8))


def test_saved_and_loaded_by_the_auto_class_is_equal(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = AutoModelForObjectDetection.from_pretrained(tmp_path).eval()
    pixels = torch.randn(1, 3, 70, 100)
    assert isinstance(again, SmcaDetrForObjectDetection)
    with torch.no_grad():
        assert torch.equal(model(pixels).logits, again(pixels).logits)


@torch.no_grad()
def test_decoder_replays_and_takes_other_queries(model):
    decoder, call = model.model.decoder, {}
    hook = decoder.register_forward_pre_hook(lambda _module, _args, kwargs: call.update(kwargs), with_kwargs=True)
    output = model(torch.randn(2, 3, 64, 96))
    hook.remove()
    assert torch.equal(decoder(**call).intermediate_hidden_states, output.intermediate_hidden_states)
    queries = ("inputs_embeds", "object_queries_position_embeddings")
    fewer = decoder(**{name: value[:, :7] if name in queries else value for name, value in call.items()})
    assert fewer.last_hidden_state.shape == (2, 7, 32)
    assert fewer.reference_logits.shape == (2, 7, 2)


def test_published_configuration_has_42_million_parameters():
    model = SmcaDetrForObjectDetection(SmcaDetrConfig(num_labels=91))
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert millions == pytest.approx(42, rel=0.03)


def test_unknown_scale_is_refused_with_the_nearest():
    with pytest.raises(UserError, match="independent"):
        SmcaDetrConfig(scale="indpendent")


def test_too_small_an_image_is_refused(model):
    with pytest.raises(UserError, match="coarsest stride 32"):
        model(torch.randn(1, 3, 64, 31))


@pytest.mark.slow
def test_onnx_agrees_for_any_batch(agrees_in_onnx):
    agrees_in_onnx(build(decoder_layers=1), (96, 128))
