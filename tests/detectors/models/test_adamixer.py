"""What AdaMixer promises: its equations, independence of padding, gradients everywhere, and a decoder that can be run again."""

import copy
import math

import numpy as np
import pytest
import torch
import transformers as hf
from torch import nn
from torch.nn import functional as F

from leandetr.detectors.models.adamixer import AdaMixerConfig, AdaMixerForObjectDetection
from leandetr.detectors.models.adamixer_layers import (
    AdaptiveMixing,
    AdaptiveSampling,
    LevelNorm,
    boxes_of_position,
    log_iof,
    position_code,
    position_of_boxes,
    sample_3d,
)
from leandetr.errors import UserError

STAGES = ["stage1", "stage2", "stage3", "stage4"]
SMALL = {
    "num_labels": 5, "num_queries": 12, "d_model": 64, "decoder_layers": 3, "decoder_ffn_dim": 64, "decoder_attention_heads": 4,
    "sampling_groups": 2, "sampling_points": 6, "mixing_points": 10,
}  # fmt: skip


def config(**changes) -> AdaMixerConfig:
    backbone = hf.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], layer_type="basic", out_features=STAGES
    )
    return AdaMixerConfig(**{"backbone_config": backbone, **SMALL, **changes})


def randomised(model: nn.Module) -> nn.Module:
    """At the published start the mixers ignore the query and boxes do not move, so a test of either would prove nothing."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if not parameter.any():
            parameter.data.normal_(0, 0.02, generator=generator)
    return model


def build(**changes) -> AdaMixerForObjectDetection:
    torch.manual_seed(0)
    return randomised(AdaMixerForObjectDetection(config(**changes))).eval()


@pytest.fixture
def model() -> AdaMixerForObjectDetection:
    return build()


def targets() -> list[dict]:
    """Two objects in the first image, none in the second."""
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.3], [0.3, 0.4, 0.4, 0.2]])
    return [
        {"class_labels": torch.tensor([1, 4]), "boxes": boxes},
        {"class_labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)},
    ]


@pytest.fixture
def positions() -> torch.Tensor:
    """(B=2, N=4, 4): overlapping, nested, disjoint and partly outside."""
    boxes = torch.tensor([[0.5, 0.5, 1.0, 1.0], [0.4, 0.5, 0.2, 0.3], [0.9, 0.9, 0.1, 0.1], [1.0, 0.1, 0.5, 0.3]])
    return position_of_boxes(torch.stack([boxes, boxes.roll(1, 0)]), torch.tensor([[96.0, 128.0], [64.0, 80.0]]))


def test_a_box_becomes_its_position_and_comes_back():
    sizes = torch.tensor([[100.0, 400.0]])
    box = torch.tensor([[[0.25, 0.5, 0.04, 0.64]]])  # 16 x 64 pixels
    torch.testing.assert_close(position_of_boxes(box, sizes), torch.tensor([[[100.0, 50.0, 5.0, 2.0]]]))
    torch.testing.assert_close(boxes_of_position(position_of_boxes(box, sizes), sizes), box)
    assert position_of_boxes(torch.zeros(1, 1, 4), sizes).isfinite().all()


def test_position_code_is_interleaved_sines_and_cosines(positions):
    code = position_code(positions, 64)
    for n, (x, y, z, r) in enumerate(positions[0].tolist()):
        expected = []
        for value in (x / 1000, y / 1000, z, r):
            for k in range(8):
                angle = value / 10000 ** (2 * k / 16)
                expected += [math.sin(angle), math.cos(angle)]
        torch.testing.assert_close(code[0, n], torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_iof_is_the_intersection_over_the_first_boxes_area(positions):
    found = log_iof(positions)
    for b, image in enumerate(positions.double().tolist()):
        corners = []
        for x, y, z, r in image:
            w, h = 2 ** (z - r / 2), 2 ** (z + r / 2)
            corners.append((x - w / 2, y - h / 2, x + w / 2, y + h / 2))
        for i, (ax, ay, ax2, ay2) in enumerate(corners):
            for j, (bx, by, bx2, by2) in enumerate(corners):
                overlap = max(0, min(ax2, bx2) - max(ax, bx)) * max(0, min(ay2, by2) - max(ay, by))
                expected = math.log(overlap / ((ax2 - ax) * (ay2 - ay)) + 1e-7)
                assert found[b, i, j].item() == pytest.approx(expected, abs=1e-4)


def test_self_attention_adds_each_heads_temperature_times_log_iof(model, positions):
    """softmax(q k / sqrt(d) + tau log IoF) v, head by head, against the layer's own attention."""
    layer, content = model.model.decoder.layers[0], torch.randn(2, 4, 64)
    attention = layer.self_attn
    found, _ = attention(content, attention_mask=layer.attention_bias(positions))
    q, k, v = (getattr(attention, f"{name}_proj")(content) for name in "qkv")
    expected = torch.zeros(2, 4, 64)
    for b in range(2):
        for head in range(4):
            own = slice(16 * head, 16 * head + 16)
            scores = q[b, :, own] @ k[b, :, own].T / 4 + layer.iof_temperature[head] * log_iof(positions)[b]
            expected[b, :, own] = scores.softmax(-1) @ v[b, :, own]
    torch.testing.assert_close(found, attention.o_proj(expected), atol=1e-5, rtol=1e-5)


def bilinear(level: torch.Tensor, x: float, y: float) -> torch.Tensor:
    """(C, h, w) at cell coordinates, where the middle of cell (0, 0) is (0.5, 0.5); zeros outside."""
    x, y, value = x - 0.5, y - 0.5, torch.zeros(level.shape[0])
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < level.shape[1] and 0 <= column < level.shape[2]:
                value += level[:, row, column] * (1 - abs(x - column)) * (1 - abs(y - row))
    return value


def test_sampling_in_three_dimensions_equals_its_definition():
    torch.manual_seed(0)
    images, queries, groups, count, channels, strides = 2, 3, 2, 4, 5, [4, 8, 16, 32]
    maps = [torch.randn(images * groups, channels, 96 // stride, 128 // stride) for stride in strides]
    points = torch.rand(images, queries, groups, count, 3) * torch.tensor([160.0, 120.0, 7.0]) - torch.tensor([16.0, 12.0, 0])
    found = sample_3d(maps, points, strides)
    assert found.shape == (images, queries, groups, count, channels)
    for b, n, g, p in np.ndindex(images, queries, groups, count):
        x, y, z = points[b, n, g, p].tolist()
        weights = torch.tensor([-((z - math.log2(stride)) ** 2) / 2 for stride in strides]).softmax(0)
        levels = [bilinear(level[b * groups + g], x / stride, y / stride) for level, stride in zip(maps, strides)]
        expected = sum(weight * value for weight, value in zip(weights, levels))
        torch.testing.assert_close(found[b, n, g, p], expected, atol=1e-4, rtol=1e-4)


def test_points_are_offset_in_sides_of_the_box_and_octaves_of_depth(positions, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "leandetr.detectors.models.adamixer_layers.sample_3d", lambda maps, points, strides: seen.append(points)
    )
    sampling, content = AdaptiveSampling(config()), torch.randn(2, 4, 64)
    sampling(content, positions, maps=[])
    offsets = sampling.offsets(content).view(2, 4, 2, 6, 3)
    for b, n, g, p in np.ndindex(2, 4, 2, 6):
        x, y, z, r = positions[b, n]
        dx, dy, dz = offsets[b, n, g, p]
        expected = torch.stack([x + dx * 2 ** (z - r / 2), y + dy * 2 ** (z + r / 2), z + dz])
        torch.testing.assert_close(seen[0][b, n, g, p], expected, atol=1e-3, rtol=1e-5)


def test_mixing_equals_its_definition():
    torch.manual_seed(0)
    mixing, groups, points, mixed, channels = AdaptiveMixing(config()), 2, 6, 10, 32
    sampled, content = torch.randn(2, 3, groups, points, channels), torch.randn(2, 3, 64)
    found = mixing(sampled, content)

    def norm(x):
        return (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt()

    for b, n in np.ndindex(2, 3):
        rows = mixing.parameters_of_query(content[b, n]).view(groups, -1)
        answers = []
        for g in range(groups):
            channel = rows[g, : channels**2].view(channels, channels)
            spatial = rows[g, channels**2 :].view(mixed, points)
            x = norm(sampled[b, n, g] @ channel).clamp(min=0)
            answers.append(norm(spatial @ x).clamp(min=0).flatten())
        expected = content[b, n] + mixing.output(torch.cat(answers))
        torch.testing.assert_close(found[b, n], expected, atol=1e-4, rtol=1e-4)


def test_mixing_starts_the_same_for_every_query_and_with_zero_mixers_only_its_bias_is_added():
    layer = AdaMixerForObjectDetection(config()).model.decoder.layers[0]
    mixing, sampled = layer.mixing, torch.randn(1, 1, 2, 6, 32).expand(1, 3, -1, -1, -1)
    content = torch.randn(1, 3, 64)
    added = mixing(sampled, content) - content  # three queries, one set of samples
    torch.testing.assert_close(added, added[:, :1].expand_as(added))
    assert added.abs().max() > 0.1
    nn.init.zeros_(mixing.parameters_of_query.bias)
    nn.init.normal_(mixing.output.bias)
    expected = F.layer_norm(content + mixing.output.bias, (64,))
    torch.testing.assert_close(layer.mixing_layer_norm(mixing(sampled, content)), expected)


@torch.no_grad()
def test_a_new_model_answers_the_whole_image_with_about_one_percent():
    torch.manual_seed(0)
    found = AdaMixerForObjectDetection(config())(torch.randn(1, 3, 64, 96))
    torch.testing.assert_close(found.pred_boxes, torch.tensor([0.5, 0.5, 1.0, 1.0]).expand(1, 12, 4))
    assert 0.002 < found.logits.sigmoid().median() < 0.1


def test_a_stage_moves_boxes_in_units_of_their_own_size(model, positions):
    layer, maps = model.model.decoder.layers[0], [torch.randn(4, 32, 96 // s, 128 // s) for s in (4, 8, 16, 32)]
    content, logits, moved = layer(torch.randn(2, 4, 64), positions, *maps)
    assert logits.shape == (2, 4, 5)
    delta = layer.box_head(content)
    for b, n in np.ndindex(2, 4):
        x, y, z, r = positions[b, n]
        dx, dy, dz, dr = delta[b, n]
        torch.testing.assert_close(moved[b, n], torch.stack([x + dx * 2**z, y + dy * 2**z, z + dz, r + dr]))


def test_every_stage_answers_and_the_last_is_the_prediction(model):
    found = model(torch.randn(2, 3, 64, 96))
    assert found.intermediate_logits.shape == (3, 2, 12, 5)
    assert found.intermediate_boxes.shape == (3, 2, 12, 4)
    assert found.intermediate_hidden_states.shape == (3, 2, 12, 64)
    for whole, last in [("intermediate_logits", "logits"), ("intermediate_boxes", "pred_boxes")]:
        assert torch.equal(found[whole][-1], found[last])
    assert torch.equal(found.intermediate_hidden_states[-1], found.last_hidden_state)
    assert not torch.equal(found.intermediate_boxes[0], found.intermediate_boxes[1])


def test_gradients_reach_every_parameter(model):
    """With `randomised` weights: at the published start the zero box heads and mixers hold back what lies before them."""
    model.train()(torch.randn(2, 3, 64, 96), labels=targets()).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()] == []


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_no_gradient(model, reentrant):
    pixel_values, checkpointed = torch.randn(2, 3, 64, 96), copy.deepcopy(model)
    checkpointed.gradient_checkpointing_enable({"use_reentrant": reentrant})
    for each in (model, checkpointed):
        each.train()(pixel_values, labels=targets()).loss.backward()
    for (name, plain), again in zip(model.named_parameters(), checkpointed.parameters()):
        torch.testing.assert_close(again.grad, plain.grad, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_loss_weighs_focal_two_l1_five_giou_two_over_all_stages(model):
    found = model(torch.randn(2, 3, 64, 96), labels=targets())
    terms = found.loss_dict
    expected = sum(2 * terms[f"loss_ce{n}"] + 5 * terms[f"loss_bbox{n}"] + 2 * terms[f"loss_giou{n}"] for n in ("", "_0", "_1"))
    torch.testing.assert_close(found.loss, expected)


def padded(image: torch.Tensor, height: int, width: int, fill: float = 0.0) -> dict[str, torch.Tensor]:
    pixel_values, pixel_mask = torch.full((1, 3, height, width), fill), torch.zeros(1, height, width, dtype=torch.int64)
    pixel_values[:, :, : image.shape[-2], : image.shape[-1]] = image
    pixel_mask[:, : image.shape[-2], : image.shape[-1]] = 1
    return {"pixel_values": pixel_values, "pixel_mask": pixel_mask}


@torch.no_grad()
def test_what_the_padding_holds_does_not_matter(model):
    image = torch.randn(1, 3, 70, 90)
    plain, filled = model(**padded(image, 96, 128)), model(**padded(image, 96, 128, fill=7.0))
    torch.testing.assert_close(filled.logits, plain.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(filled.pred_boxes, plain.pred_boxes, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("canvas", [(70, 90), (96, 128), (160, 96)])
def test_how_much_padding_there_is_does_not_matter(model, canvas):
    image = torch.randn(1, 3, 70, 90)
    alone, beside = model(image), model(**padded(image, *canvas))
    torch.testing.assert_close(beside.logits, alone.logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(beside.intermediate_boxes, alone.intermediate_boxes, atol=1e-4, rtol=0)


def test_level_norm_equals_group_norm_of_the_valid_cells_alone():
    norm, features, valid = LevelNorm(4, 16), torch.randn(2, 16, 6, 8), torch.zeros(2, 1, 6, 8, dtype=torch.bool)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    valid[0, :, :4, :5], valid[1] = True, True
    found = norm(features, valid)
    torch.testing.assert_close(found[:1, :, :4, :5], norm(features[:1, :, :4, :5]))
    torch.testing.assert_close(found[1:], norm(features[1:]))
    assert not found[0, :, 4:].any()


@torch.no_grad()
def test_decoder_is_recorded_and_run_again_with_the_same_and_with_other_queries(model):
    call, image = {}, torch.randn(1, 3, 70, 90)
    hook = model.model.decoder.register_forward_pre_hook(lambda module, args, kwargs: call.update(kwargs), with_kwargs=True)
    first = model(**padded(image, 96, 96))
    hook.remove()
    again = model.model.decoder(**call)
    assert torch.equal(again.intermediate_logits, first.intermediate_logits)
    assert torch.equal(again.intermediate_boxes, first.intermediate_boxes)
    reference = torch.tensor([[[0.3, 0.3, 0.2, 0.4]]]).expand(1, 7, 4)
    other = model.model.decoder(**call | {"inputs_embeds": torch.randn(1, 7, 64), "reference_points": reference})
    assert other.intermediate_boxes.shape == (3, 1, 7, 4)
    assert (other.intermediate_boxes[0] - reference).abs().max() < 0.2


@torch.no_grad()
def test_saved_and_loaded_by_the_auto_class_it_gives_the_same_answer(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = hf.AutoModelForObjectDetection.from_pretrained(tmp_path)
    assert isinstance(loaded, AdaMixerForObjectDetection)
    pixel_values = torch.randn(1, 3, 64, 64)
    assert torch.equal(loaded(pixel_values).logits, model(pixel_values).logits)


def test_half_precision_keeps_positions_in_full_precision(model):
    found = model.to(torch.bfloat16)(torch.randn(1, 3, 64, 96, dtype=torch.bfloat16))
    assert (found.logits.dtype, found.pred_boxes.dtype) == (torch.bfloat16, torch.float32)
    assert found.pred_boxes.isfinite().all()


@pytest.mark.slow
def test_onnx_agrees_for_any_batch(agrees_in_onnx):
    agrees_in_onnx(build(decoder_layers=2), (64, 96))


@pytest.mark.slow
def test_compiled_it_trains_as_uncompiled():
    model = build(decoder_layers=1)
    pixel_values, plain = torch.randn(2, 3, 64, 64), copy.deepcopy(model)
    compiled = torch.compile(model, backend="aot_eager")
    for each in (plain, compiled):
        each(pixel_values, labels=targets()).loss.backward()
    for (name, expected), parameter in zip(plain.named_parameters(), model.parameters()):
        torch.testing.assert_close(parameter.grad, expected.grad, atol=1e-3, rtol=1e-3, msg=name)


def test_published_size():
    with torch.device("meta"):
        published = AdaMixerForObjectDetection(AdaMixerConfig(num_labels=80))
    assert sum(parameter.numel() for parameter in published.parameters()) == pytest.approx(135e6, rel=0.03)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": 48}, "d_model=48 is not a multiple of 32"),
        ({"decoder_attention_heads": 5}, "d_model=64 is not a multiple of decoder_attention_heads=5"),
        ({"sampling_groups": 3}, "d_model=64 is not a multiple of sampling_groups=3"),
        ({"feature_strides": [8, 16, 32]}, "4 feature maps for 3 feature_strides"),
    ],
)
def test_impossible_configurations_are_refused_in_a_sentence(changes, message):
    with pytest.raises(UserError, match=message):
        AdaMixerForObjectDetection(config(**changes))


def test_wrong_strides_and_tiny_images_are_refused_in_a_sentence():
    with pytest.raises(UserError, match="does not have stride 8; set feature_strides"):
        AdaMixerForObjectDetection(config(feature_strides=[8, 16, 32, 64]))(torch.zeros(1, 3, 128, 128))
    with pytest.raises(UserError, match="smaller than the coarsest stride 32"):
        AdaMixerForObjectDetection(config())(torch.zeros(1, 3, 16, 64))
