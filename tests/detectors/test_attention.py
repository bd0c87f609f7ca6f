"""What an opened attention promises: the same answers while its slots are identities, operands that pass through the slots,
nothing reached in silence, and co-attended features that are what the output projection reads."""

import copy

import pytest
import torch
from torch import nn

from leandetr.deployment.onnx import export_onnx
from leandetr.deployment.runtimes import OnnxRuntime
from leandetr.detectors.attention import (
    AttentionSlots,
    attention_with_slots,
    open_attention,
    unopened_attention,
)
from leandetr.detectors.create import create

SMALL = {"d_model": 32, "decoder_layers": 2, "encoder_layers": 1, "decoder_ffn_dim": 64, "num_queries": 12}
SWIN = {f"backbone_config.{key}": value for key, value in {"embed_dim": 24, "depths": [1, 1, 1, 1]}.items()}
VIT = {
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "out_indices": [2, 4],
    "hidden_size": 36,
    "window_block_indices": [0, 2],
}
LW = {f"backbone_config.{key}": value for key, value in VIT.items()}

#: name -> backbone, overrides, attentions reached in encoder and decoder, whether the decoder's attention to memory is dense
FAMILIES = {
    "detr": ("test_resnet", SMALL, 5, True),
    "conditional_detr": ("test_resnet", SMALL, 5, True),
    "deformable_detr": ("test_resnet", SMALL, 2, False),
    "dab_detr": ("test_resnet", {k: v for k, v in SMALL.items() if k != "d_model"} | {"hidden_size": 32}, 0, False),
    "smca_detr": ("test_resnet", SMALL, 5, True),
    "swin_detr": (None, SMALL | SWIN, 5, True),
    "rt_detr": ("test_resnet", SMALL, 3, False),
    "rt_detr_v2": ("test_resnet", SMALL, 3, False),
    "d_fine": ("test_resnet", SMALL, 3, False),
    "adamixer": ("test_resnet", {k: v for k, v in SMALL.items() if k != "encoder_layers"}, 2, False),
    "lw_detr": (None, {k: v for k, v in SMALL.items() if k != "encoder_layers"} | LW, 2, False),
}
DENSE = [name for name, (*_, dense) in FAMILIES.items() if dense]


class Passing(nn.Module):
    """What an identity is to a caller, but no `nn.Identity`: takes the path of the quantizers."""

    def forward(self, x):
        return x * 1.0


@pytest.fixture(scope="module")
def built():
    return {}


@pytest.fixture
def detector(built, classes):
    """A detector of the family with weights moved off their initial values, where zeros hide faults; a copy for each test."""

    def get(name):
        if name not in built:
            torch.manual_seed(0)
            backbone, overrides, *_ = FAMILIES[name]
            built[name] = create(name, classes, (64, 64), backbone=backbone, overrides=dict(overrides)).eval()
            with torch.no_grad():
                for parameter in built[name].parameters():
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        return copy.deepcopy(built[name])

    return get


@pytest.fixture
def padded():
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(2, 64, 64, dtype=torch.int64)
    mask[1, :, 32:] = 0
    return torch.randn(2, 3, 64, 64, generator=generator) * mask[:, None], mask


@torch.no_grad()
def answers(detector, batch):
    output = detector(*batch)
    return output.logits, output.boxes


@pytest.mark.parametrize("name", FAMILIES)
def test_identities_change_nothing_with_and_without_padding(detector, padded, name):
    plain, pixels = detector(name), padded[0]
    opened = copy.deepcopy(plain)
    slots = open_attention(opened.model)
    assert len(slots) == FAMILIES[name][2]
    passing = copy.deepcopy(opened)
    for part in open_attention(passing.model).values():
        for operand in ("query", "key", "value", "probabilities"):
            setattr(part, operand, Passing())
    for batch in (padded, (pixels, None)):
        want, same, close = (answers(part, batch) for part in (plain, opened, passing))
        for a, b, c in zip(want, same, close, strict=True):
            assert torch.equal(a, b)
            torch.testing.assert_close(a, c, atol=2e-6, rtol=5e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_attention_is_opened_or_named(detector, name):
    model = detector(name).model
    opened = open_attention(model)
    unopened = unopened_attention(model)
    assert not set(opened) & set(unopened)
    layers = [n for n, _ in model.named_modules() if n.endswith(("encoder_attn", "cross_attn")) and "backbone" not in n]
    for layer in layers:
        reached = any(n == layer or n.startswith(f"{layer}.") for n in opened)
        named = any(n == layer or n.startswith(f"{layer}.") or layer.startswith(f"{n}.") for n in unopened)
        assert reached == FAMILIES[name][3]
        assert named != reached


def test_the_backbone_keeps_its_own_attention(detector):
    model = detector("swin_detr").model
    assert open_attention(model)
    assert all("backbone" in name for name in unopened_attention(model))
    assert unopened_attention(model)
    assert model.model.backbone.config._attn_implementation != model.config._attn_implementation


def test_opening_twice_keeps_the_slots(detector):
    model = detector("detr").model
    first = open_attention(model)
    name, slots = next(iter(first.items()))
    slots.query = Passing()
    assert open_attention(model)[name] is slots
    assert isinstance(slots.query, Passing)


def test_slots_save_train_and_see_their_operands(detector, padded):
    detector = detector("detr")
    slots = open_attention(detector.model)["model.decoder.layers.1.encoder_attn"]
    seen = {}

    class Scale(nn.Module):
        def __init__(self, name):
            super().__init__()
            self.name, self.scale = name, nn.Parameter(torch.tensor(0.9))

        def forward(self, x):
            seen[self.name] = tuple(x.shape)
            return x * self.scale

    operands = ("align", "query", "key", "value", "probabilities")
    for name in operands:
        setattr(slots, name, Scale(name))
    detector(*padded).logits.square().sum().backward()
    tokens = detector(*padded).memory.tokens.shape[1]
    assert seen["align"] == seen["query"] == (2, 8, 12, 4)
    assert seen["key"] == seen["value"] == (2, 8, tokens, 4)
    assert seen["probabilities"] == (2, 8, 12, tokens)
    state = detector.model.state_dict()
    for name in operands:
        assert getattr(slots, name).scale.grad.abs() > 0
        assert f"model.decoder.layers.1.encoder_attn.slots.{name}.scale" in state


def test_product_is_the_definition_for_both_kinds_of_mask():
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 2, 3, 4), torch.randn(2, 2, 5, 4), torch.randn(2, 2, 5, 4)
    allowed = torch.ones(2, 1, 3, 5, dtype=torch.bool)
    allowed[1, ..., 3:] = False
    bias = torch.randn(2, 1, 3, 5)
    for mask in (None, allowed, bias):
        want = torch.zeros(2, 3, 2, 4)
        for image in range(2):
            for head in range(2):
                for i in range(3):
                    logits = 0.5 * key[image, head] @ query[image, head, i]
                    if mask is allowed:
                        logits[~allowed[image, 0, i]] = -torch.inf
                    elif mask is bias:
                        logits = logits + bias[image, 0, i]
                    want[image, i, head] = logits.softmax(0) @ value[image, head]
        module = nn.Module()
        module.is_causal = False
        module.slots = AttentionSlots()
        for operand in (nn.Identity(), Passing()):
            module.slots.value = operand
            given, _ = attention_with_slots(module, query, key, value, mask, scaling=0.5)
            torch.testing.assert_close(given, want)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "adamixer"])
def test_co_attended_features_are_what_the_output_projection_reads(detector, padded, name):
    detector = detector(name)
    outputs = []
    for layer in detector.model.model.decoder.layers:
        detector.family.cross_attention(layer).register_forward_hook(
            lambda _module, _arguments, output: outputs.append(output[0])
        )
    output = detector(*padded, asked={"attended"})
    assert output.attended.shape == output.hidden.shape
    for layer, attended, found in zip(detector.model.model.decoder.layers, output.attended, outputs, strict=True):
        module = detector.family.cross_attention(layer)
        projection = getattr(module, "o_proj", getattr(module, "output_proj", nn.Identity()))
        torch.testing.assert_close(projection(attended), found)


def test_co_attended_features_are_there_when_asked_alone(detector, padded, labels):
    assert detector("detr")(*padded).attended is None
    assert detector("adamixer")(*padded, asked={"attended"}).attended is None
    training = detector("rt_detr_v2").train()  # denoising queries are no queries
    assert training(*padded, labels=labels(2, 1), asked={"attended"}).attended.shape == (2, 2, 12, 32)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["detr", "rt_detr_v2"])
def test_opened_attention_exports(detector, padded, tmp_path, name):
    detector = detector(name)
    for slots in open_attention(detector.model).values():
        slots.probabilities = Passing()
    file = export_onnx(detector, tmp_path / "model.onnx")
    logits, _ = OnnxRuntime(file).run(padded[0], None)
    torch.testing.assert_close(torch.as_tensor(logits), detector(padded[0]).logits[-1].detach(), atol=1e-3, rtol=1e-3)
