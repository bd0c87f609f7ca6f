"""What low-bit training promises: a detector that trains, and integers at its end that answer as it did."""

import pytest
import torch
from timm.layers import Conv2dSame
from torch import nn

from leandetr.detectors.checkpoints.load import load
from leandetr.errors import UserError
from leandetr.quantization import LowBit, WeightOnly, finish, in_training, quantize
from leandetr.quantization.checkpoint import weights_left_float
from leandetr.quantization.config import from_dict
from leandetr.quantization.layers.modules import LayerPlan, QuantizedLayer, quantized_layer
from leandetr.quantization.layers.trainable import LearnedGrid, TrainableLayer, trainable_layer

SWIN = {"backbone_config.embed_dim": 24, "backbone_config.depths": [1, 1, 1, 1]}
FAMILIES = ["detr", "conditional_detr", "deformable_detr", "smca_detr", "swin_detr", "rt_detr_v2"]
#: families whose every attention could be opened
DENSE = ["detr", "conditional_detr", "smca_detr"]


@pytest.fixture
def tiny(tiny_detector):
    def build(name: str):
        return tiny_detector(name, None, **SWIN) if name == "swin_detr" else tiny_detector(name, "test_resnet")

    return build


@pytest.fixture
def images():
    return torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def batches(images, labels):
    return [{"pixel_values": images, "pixel_mask": torch.ones(2, 128, 128, dtype=torch.int64), "labels": labels(2, 1)}]


def low_bit(**options) -> LowBit:
    return LowBit(calibration_images=2, **options)


def logits(detector, images):
    with torch.no_grad():
        return detector.eval()(images).logits


def trained(detector, batches, steps: int = 2):
    """A few steps, large enough for weights to change their integers."""
    optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-3)
    for _ in range(steps):
        loss = detector.train()(**batches[0]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return detector.eval()


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name in ("conditional_detr", "smca_detr") else name for name in FAMILIES],
)
def test_a_family_trains_is_saved_and_finished(tiny, images, batches, tmp_path, name):
    float_detector = tiny(name)
    before = logits(float_detector, images)
    detector = quantize(float_detector, low_bit(), batches)
    torch.testing.assert_close(logits(float_detector, images), before, rtol=0, atol=0)
    detector.train()(**batches[0]).loss.backward()
    assert [name for name, p in detector.named_parameters() if p.requires_grad and p.grad is None] == []

    trained(detector, batches)
    detector.save(tmp_path / "training")
    again = load(tmp_path / "training")
    assert in_training(again)
    assert torch.equal(logits(again, images), logits(detector, images))

    finished = finish(again)
    finished.save(tmp_path / "finished")
    stored = load(tmp_path / "finished")
    assert not in_training(stored)
    assert torch.equal(logits(stored, images), logits(finished, images))
    with torch.no_grad():  # what stayed float is kept in 16 bits, all else as it was trained
        for weight in weights_left_float(detector.model, detector.config.quantization_config):
            weight.copy_(weight.half())
    torch.testing.assert_close(logits(stored, images), logits(detector, images), rtol=1e-5, atol=1e-5)


def test_four_bits_take_less_than_a_sixth_of_the_bytes(tiny_detector, batches, tmp_path):
    """And what stayed float is part of them."""
    detector = tiny_detector("detr", d_model=128)
    detector.save(tmp_path / "float")
    finish(quantize(detector, low_bit(), batches)).save(tmp_path / "packed")
    whole, packed = ((tmp_path / name / "model.safetensors").stat().st_size for name in ("float", "packed"))
    assert packed < 0.16 * whole


@pytest.mark.parametrize("bits", ["2-2-8", "3-3-8", "4-4-4"])
def test_layers_hold_and_see_only_values_of_their_grids(tiny, images, batches, bits):
    weights, activations, attention = (int(width) for width in bits.split("-"))
    detector = trained(quantize(tiny("detr"), low_bit(bits=bits), batches), batches)
    seen: dict[str, int] = {}

    def look(name):
        def hook(_grid, _inputs, output):
            channels = output if name.endswith("weight_grid") else output[None]
            seen[name] = max(len(channel.unique()) for channel in channels)

        return hook

    for name, module in detector.model.named_modules():
        if isinstance(module, LearnedGrid):
            module.register_forward_hook(look(name))
    logits(detector, images)
    first = "model.backbone.model.conv1.0"
    for name, found in seen.items():
        width = 8 if name.startswith(first) else attention if ".slots." in name else activations
        assert found <= 2 ** (weights if name.endswith("weight_grid") and width != 8 else width), name
    assert sum(".slots." in name for name in seen) == 4 * (1 + 2 * 3)  # one encoder layer, three decoder layers

    for name, layer in finish(detector).model.named_modules():
        if isinstance(layer, QuantizedLayer):
            width = 8 if name == first else weights
            assert layer.plan.weight_bits == width


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"bits": "1-4-8"}, "bits is '1-4-8'"),
        ({"bits": 9}, "bits is '9'"),
        ({"bits": "4-4"}, "bits is '4-4'"),
        ({"attention": {"w": 4}}, "operand of attention 'w'"),
        ({"attention": {"softmax": 1}}, "attention.softmax is 1"),
        ({"first_convolution": 16}, "first_convolution is 16"),
        ({"depthwise": 1}, "depthwise is 1"),
        ({"part": "decoder"}, "part 'decoder'"),
        ({"overrides": {"a": "static"}}, "low-bit layers are trained"),
    ],
)
def test_a_value_out_of_range_is_one_sentence(options, says):
    with pytest.raises(UserError, match=says):
        LowBit(**options)
    with pytest.raises(UserError, match="low-bit layers are trained"):
        WeightOnly(overrides={"a": "low-bit"})


def test_depthwise_convolutions_have_bits_of_their_own():
    full, depthwise, grouped = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 16, 3, groups=8), nn.Conv2d(8, 8, 3, groups=2)
    config = LowBit(bits="2-3-8")
    assert (
        config.layer_bits(full, False)
        == config.layer_bits(grouped, False)
        == config.layer_bits(nn.Linear(8, 8), False)
        == (2, 3)
    )
    assert config.layer_bits(depthwise, False) == config.layer_bits(full, True) == (8, 8)
    assert LowBit(bits="4-4-8", depthwise=2).layer_bits(depthwise, False) == (4, 4)


def test_bits_in_short_and_as_plain_values():
    assert LowBit(bits=3) == LowBit(bits="3-3-8")
    config = LowBit(bits="2-3-4", attention={"softmax": 8}, overrides={"*.fc1": LowBit(bits=8), "*.fc2": "float"})
    assert (config.weight_bits, config.activation_bits) == (2, 3)
    assert [config.operand(operand).bits for operand in ("q", "softmax")] == [4, 8]
    assert from_dict(config.to_dict()) == config


def test_overrides_reach_layers_and_attention(tiny, batches):
    overrides = {"*.mlp.fc1": low_bit(bits=8), "*.encoder_attn": low_bit(bits="4-4-2"), "model.encoder.*": "float"}
    config = low_bit(overrides=overrides)
    record = quantize(tiny("detr"), config, batches).config.quantization_config
    assert not any(name.startswith("model.encoder.") for name in [*record.layers, *record.activations])
    assert record.layers["model.decoder.layers.0.mlp.fc1"]["weight_bits"] == 8
    assert record.activations["model.decoder.layers.0.encoder_attn.slots.query"] == 2
    assert record.activations["model.decoder.layers.0.self_attn.slots.query"] == 8
    with pytest.raises(UserError, match="matches no layer"):
        quantize(tiny("detr"), low_bit(overrides={"model.deocder.*": "float"}), batches)


@pytest.mark.parametrize("name", FAMILIES)
def test_attention_that_was_not_reached_is_said(tiny, batches, name):
    summary = quantize(tiny(name), low_bit(), batches).config.quantization_config.summary()
    assert ("operands of attention" in summary) == (name not in DENSE)


def trainable_layers(detector):
    return {name: module for name, module in detector.model.named_modules() if isinstance(module, TrainableLayer)}


def test_two_stages_end_with_everything_quantized(tiny, batches):
    first = trained(quantize(tiny("detr"), low_bit(part="backbone"), batches), batches)
    layers = trainable_layers(first)
    assert layers
    assert all(name.startswith("model.backbone.") for name in layers)
    second = quantize(first, low_bit(), batches)
    for name, layer in layers.items():
        kept = second.model.get_submodule(name)
        assert all(torch.equal(value, kept.state_dict()[key]) for key, value in layer.state_dict().items())
    whole = quantize(tiny("detr"), low_bit(), batches)
    assert trainable_layers(second).keys() == trainable_layers(whole).keys()
    assert second.config.quantization_config.left_float == whole.config.quantization_config.left_float
    finish(second)


def test_eight_bits_start_at_the_float_answers(tiny, images, batches):
    detector = tiny("detr")
    expected, found = logits(detector, images), logits(quantize(detector, low_bit(bits="8-8-8"), batches), images)
    assert (found - expected).abs().mean() < 0.03 * expected.std()


def test_what_cannot_be_is_said_in_one_sentence(tiny, batches):
    with pytest.raises(UserError, match="calibration images"):
        quantize(tiny("detr"), LowBit())
    with pytest.raises(UserError, match="not in low-bit training"):
        finish(tiny("detr"))
    with pytest.raises(UserError, match="quantized already"):
        quantize(quantize(tiny("detr"), low_bit(), batches), WeightOnly())
    with pytest.raises(UserError, match="quantized already"):
        quantize(finish(quantize(tiny("detr"), low_bit(), batches)), low_bit(), batches)


@pytest.mark.parametrize("layer", [nn.Linear(6, 4), nn.Conv2d(6, 4, 3, bias=False), nn.Conv2d(6, 6, 3, groups=6)])
def test_steps_stay_positive_however_hard_they_are_pushed(layer):
    trainable = trainable_layer(layer, LayerPlan(weight_bits=2, input="grid", input_bits=2))
    trainable.input.set(torch.tensor(0.1), torch.tensor(1))
    trainable.fill(layer)
    assert isinstance(trainable, TrainableLayer)
    with torch.no_grad():
        for grid in (trainable.input, trainable.weight_grid):
            grid.raw_step -= 5
            assert (grid.step > 0).all()


@pytest.mark.parametrize("layer", [nn.Conv2d(6, 4, 3, 2, 1), Conv2dSame(6, 4, 3, 2), nn.Conv2d(6, 6, 3, groups=6, bias=False)])
def test_a_finished_convolution_computes_what_the_trained_one_did(layer):
    x = torch.randn(2, 6, 11, 8)
    shape = layer(x).shape
    trainable = trainable_layer(layer, LayerPlan(weight_bits=3, input="grid", input_bits=3))
    trainable.input.set(torch.tensor(0.5), torch.tensor(4))
    trainable.fill(layer)
    finished = quantized_layer(trainable, trainable.plan)
    trainable.finish(finished)
    with torch.no_grad():
        assert finished(x).shape == shape
        assert torch.equal(finished(x), trainable(x))
