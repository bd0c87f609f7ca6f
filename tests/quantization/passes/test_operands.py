"""Products of attention in integers: what is rounded, to which grid, and what is said of attention out of reach."""

import pytest
import torch
from torch import nn

from leandetr.detectors.attention import open_attention
from leandetr.detectors.checkpoints.load import load
from leandetr.detectors.create import create
from leandetr.errors import UserError
from leandetr.quantization import Static, Unified, WeightOnly, quantize
from leandetr.quantization.choice import unified
from leandetr.quantization.layers.operators import fake_quantize

OPERANDS = ("query", "key", "value", "probabilities")
#: nothing but the operands of attention
ALONE = WeightOnly(overrides={"*": "float", "*_attn": Static(attention=True, calibration_images=2)})


@pytest.fixture
def tiny(tiny_detector, classes):
    def build(name):
        if name == "dab_detr":  # its sizes have other names
            small = {"hidden_size": 32, "encoder_layers": 1, "decoder_layers": 1, "num_queries": 12}
            detector = create(name, classes, (128, 128), backbone="test_resnet", overrides=small).eval()
        else:
            detector = tiny_detector(name, backbone="test_resnet")
        with torch.no_grad():  # untrained queries all attend alike
            for parameter in detector.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
        return detector

    return build


@pytest.fixture
def padded():
    """Two images, the right half of the second one padding."""
    mask = torch.ones(2, 128, 128, dtype=torch.int64)
    mask[1, :, 64:] = 0
    pixels = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    return {"pixel_values": pixels * mask[:, None], "pixel_mask": mask}


@torch.no_grad()
def answers(detector, batch):
    output = detector(batch["pixel_values"], batch["pixel_mask"])
    return output.logits, output.boxes


def slots_of(detector):
    """(attention, operand) -> slot."""
    return {
        (name, operand): getattr(slots, operand)
        for name, slots in open_attention(detector.model).items()
        for operand in OPERANDS
    }


def watched(detector, batch):
    """(attention, operand) -> what went into its slot and what came out."""
    seen, handles = {}, []
    for key, slot in slots_of(detector).items():

        def read(_slot, inputs, output, key=key):
            seen[key] = inputs[0], output

        handles.append(slot.register_forward_hook(read))
    answers(detector, batch)
    for handle in handles:
        handle.remove()
    return seen


class Finer(nn.Module):
    """The range of an 8-bit grid, a step wider since its zero point is rounded, in 2^16 steps."""

    def __init__(self, slot):
        super().__init__()
        grid = slot.output
        zero = int(grid.zero_point)
        self.scale = grid.scale * 257 / (2**16 - 1)
        self.zero_point = torch.round((zero + (zero > 0)) * grid.scale / self.scale).int()

    def forward(self, x):
        return fake_quantize(x, self.scale, self.zero_point, 0, 2**16 - 1)


def test_on_16_bits_the_answers_are_the_float_ones(tiny, padded):
    detector = tiny("detr")
    quantized = quantize(detector, ALONE, [padded])
    expected = answers(detector, padded)
    assert any((a - b).abs().max() > 1e-4 for a, b in zip(answers(quantized, padded), expected, strict=True))
    for slots in open_attention(quantized.model).values():
        for operand in OPERANDS:
            setattr(slots, operand, Finer(getattr(slots, operand)))
    for found, wanted in zip(answers(quantized, padded), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_operands_are_rounded_on_the_range_they_were_seen_in(tiny, padded):
    detector = tiny("detr")
    plain = quantize(detector, WeightOnly(overrides={"*": "float"}))
    seen = watched(plain, padded)
    quantized = quantize(detector, ALONE, [padded])
    slots, given = slots_of(quantized), watched(quantized, padded)
    assert len(given) == 4 * (1 + 2 * 3)  # one encoder layer, three decoder layers
    for key, (x, rounded) in given.items():
        low, high = (min(seen[key][0].min().item(), 0.0), max(seen[key][0].max().item(), 0.0))
        scale, zero = slots[key].output.scale.item(), int(slots[key].output.zero_point)
        assert scale == pytest.approx((high - low) / 255, rel=1e-3)
        assert (zero == 0) == (key[1] == "probabilities")
        integers = [round(value / scale) + zero for value in x.flatten()[:300].tolist()]
        wanted = torch.tensor([scale * (min(max(integer, 0), 255) - zero) for integer in integers])
        agree = (rounded.flatten()[:300] - wanted).abs() < 1e-3 * scale
        assert agree.float().mean() > 0.98  # halves may round to either side in float32 and in float64


def test_padding_gets_no_probability(tiny, padded):
    quantized = quantize(tiny("detr"), ALONE, [padded])
    for (name, operand), (_, rounded) in watched(quantized, padded).items():
        if operand == "probabilities" and (name.endswith("encoder_attn") or name.startswith("model.encoder")):
            cells = rounded.sum((1, 2)).unflatten(1, (4, 4))  # 128 pixels at stride 32
            assert (cells[0] > 0).all()
            assert (cells[1, :, :2] > 0).all()
            assert (cells[1, :, 2:] == 0).all()


@pytest.mark.parametrize("name", ["detr", "rt_detr_v2"])
def test_saved_equals_loaded(tiny, padded, tmp_path, name):
    quantized = quantize(tiny(name), Static(attention=True, calibration_images=2), [padded])
    record = quantized.config.quantization_config
    assert any(".slots." in name for name in record.activations)
    quantized.save(tmp_path / "quantized")
    for ours, theirs in zip(answers(quantized, padded), answers(load(tmp_path / "quantized"), padded), strict=True):
        assert torch.equal(ours, theirs)


def test_without_the_option_attention_stays_as_it_is(tiny, padded):
    quantized = quantize(tiny("detr"), Static(calibration_images=2), [padded])
    assert not any(".slots" in name for name, _ in quantized.model.named_modules())
    assert "attention" not in quantized.config.quantization_config.summary()


@pytest.mark.parametrize("name", ["detr", "rt_detr_v2", "dab_detr"])
def test_attention_that_was_not_reached_is_said(tiny, padded, name):
    record = quantize(tiny(name), Static(attention=True, calibration_images=2), [padded]).config.quantization_config
    said = "operands of attention, which calls no registered function" in record.summary()
    assert said == (name != "detr")
    assert any(".slots." in name for name in record.activations) == (name != "dab_detr")


def test_overrides_reach_single_attentions(tiny, padded):
    scheme = Static(attention=True, calibration_images=2, overrides={"*.encoder_attn": "float"})
    record = quantize(tiny("detr"), scheme, [padded]).config.quantization_config
    assert record.activations["model.decoder.layers.0.self_attn.slots.key"] == 8
    assert not any(".encoder_attn.slots" in name for name in record.activations)
    assert record.left_float["model.decoder.layers.0.encoder_attn"] == "operands of attention, override *.encoder_attn"
    assert "model.decoder.layers.0.encoder_attn.q_proj" in record.layers
    with pytest.raises(UserError, match="matches no layer"):
        quantize(tiny("detr"), Static(calibration_images=2, overrides={"*.encoder_attn": "float"}), [padded])


def test_unified_takes_the_attentions_whose_layers_are_on_grids(tiny, padded, monkeypatch):
    static = Static(calibration_images=2)
    monkeypatch.setattr(unified, "candidates", lambda _images: {"static": static})
    scheme = Unified(tolerance=9.0, calibration_images=2, attention=True, overrides={"model.encoder.*.q_proj": "float"})
    record = quantize(tiny("rt_detr_v2"), scheme, [padded]).config.quantization_config
    attentions = {name.split(".slots.")[0] for name in record.activations if ".slots." in name}
    assert attentions == {f"model.decoder.layers.{layer}.self_attn" for layer in range(3)}
    assert "operands of attention" in record.left_float["model.decoder.layers.0.encoder_attn"]


@pytest.mark.parametrize("scheme", [Static, Unified])
def test_a_switch_is_on_or_off(scheme):
    with pytest.raises(UserError, match="attention is 8; give true or false"):
        scheme(attention=8)
