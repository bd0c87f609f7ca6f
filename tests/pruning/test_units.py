"""A pruned detector is the whole one with units masked, in every family and every kind of block."""

import pytest
import torch

from leandetr.detectors.attention_heads import whole_attentions
from leandetr.detectors.checkpoints.load import load
from leandetr.detectors.create import create
from leandetr.detectors.multiply_adds import multiply_adds
from leandetr.detectors.prunable import prunable_units
from leandetr.pruning.importance import costs
from leandetr.pruning.prune import keep_units

#: built of the parts of another
#: how many attentions have heads that can leave, of one encoder layer and three of the decoder; 7 elsewhere
HEADS = {"dab_detr": 0, "adamixer": 0, "smca_detr": 4, "d_fine": 4, "deimv2": 4, "lw_detr": 6, "rf_detr": 6}
SMALL = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 8, "decoder_ffn_dim": 32}
#: (model, backbone, changes) -> how many sets of inner channels there are
BLOCKS = {
    "timm's basic blocks": ("detr", "resnet10t", SMALL, 4),
    "timm's bottlenecks": ("detr", "resnet26", SMALL, 16),
    "inverted residuals with excitation": ("detr", "mobilenetv3_small_050", SMALL, 10),
    "edge residuals": ("detr", "efficientnet_es_pruned", SMALL, 18),
    "universal inverted residuals": ("detr", "mobilenetv4_conv_small_035", SMALL, 12),
    "aggregation, also depthwise": ("smca_detr", "hgnetv2_b0", SMALL, 20),
    "partial stages": ("rt_detr_v2", "resnet10t", SMALL | {"encoder_hidden_dim": 32, "hidden_expansion": 0.5}, 4 + 4),
    "efficient layer aggregation": ("d_fine", "resnet10t", SMALL | {"encoder_hidden_dim": 32}, 4 + 4 * 4),
    "transformers' basic blocks": (
        "rt_detr_v2",
        "rt_detr_resnet",
        SMALL
        | {"backbone_config.depths": [1, 1, 1, 1], "backbone_config.layer_type": "basic", "backbone_config.embedding_size": 16}
        | {"backbone_config.hidden_sizes": [16, 24, 32, 40]},
        4,
    ),
    "layers of vision transformers": ("swin_detr", None, SMALL | {"backbone_config.embed_dim": 24}, 12),
}
LONG = ("timm's bottlenecks", "edge residuals", "aggregation, also depthwise")
KINDS = [pytest.param(kind, marks=pytest.mark.slow) if kind in LONG else kind for kind in BLOCKS]


@torch.no_grad()
def lively(detector):
    """With weights that all do something."""
    torch.manual_seed(1)
    for parameter in detector.model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.02)
    for name, values in detector.model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            values.add_(torch.rand_like(values) * 0.1)
    return detector.eval()


@torch.no_grad()
def answer(detector, side=128):
    return detector(torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0)))


def check_masked(detector, structures, folder, side=64):
    """Half of all units of these structures leave: the answers are those with them multiplied by zero, saved and loaded too."""
    found = prunable_units(detector.model, structures)
    kept = {key: torch.randperm(units.count)[: units.count // 2] for key, units in found.items()}
    pruned = keep_units(detector, kept)
    pruned.save(folder)
    whole = answer(detector, side)
    handles = []
    for key, units in found.items():
        mask = torch.zeros(units.count)
        mask[kept[key]] = 1.0
        handles += units.multiply(mask)
    expected = answer(detector, side)
    for handle in handles:
        handle.remove()
    assert not torch.allclose(expected.logits[-1], whole.logits[-1], atol=1e-3)
    for one in (pruned, load(folder)):
        counts = {key: units.count for key, units in prunable_units(one.model, structures).items()}
        assert counts == one.config.pruned_units == {key: len(units) for key, units in kept.items()}
        output = answer(one, side)
        torch.testing.assert_close(output.logits, expected.logits, rtol=0, atol=1e-5)
        torch.testing.assert_close(output.boxes, expected.boxes, rtol=0, atol=1e-5)


def test_pruned_is_masked_in_every_family(tiny_detector, any_family, tmp_path):
    own = any_family in ("swin_detr", "lw_detr", "rf_detr")
    detector = lively(tiny_detector(any_family, None if own else "test_resnet"))
    hidden = prunable_units(detector.model, ["ffn"])
    sides = {"encoder", "decoder"} if hasattr(detector.config, "encoder_layers") else {"decoder"}
    assert {layer.split(".")[1] for layer in hidden} == sides
    assert sum("decoder" in layer for layer in hidden) == 3
    heads = prunable_units(detector.model, ["heads"])
    assert len(heads) == HEADS.get(any_family, 7)
    assert bool(whole_attentions(detector.model)) == (HEADS.get(any_family, 7) < 6)
    check_masked(detector, ["ffn", "heads"], tmp_path / "pruned", 128)


@pytest.mark.parametrize("kind", KINDS)
def test_pruned_is_masked_in_every_block(classes, kind, tmp_path):
    name, backbone, changes, count = BLOCKS[kind]
    torch.manual_seed(0)
    detector = lively(create(name, classes, (64, 64), backbone=backbone, overrides=changes))
    assert len(prunable_units(detector.model, ["channels"])) == count
    check_masked(detector, ["channels"], tmp_path / "pruned")


@pytest.mark.parametrize("backbone", ["seresnext26d_32x4d", "regnety_002"])
def test_grouped_channels_stay(classes, backbone):
    detector = create("detr", classes, (64, 64), backbone=backbone, overrides=SMALL)
    assert not prunable_units(detector.model, ["channels"])


@pytest.mark.parametrize("name", ["detr", "deformable_detr"])
def test_costs_are_the_multiply_adds_that_leave(tiny_detector, name):
    detector = tiny_detector(name, "test_resnet").requires_grad_(False)
    found = prunable_units(detector.model)
    each = costs(detector.model, found, (64, 96))
    before = multiply_adds(detector.model, (64, 96))
    for structure in ("ffn", "heads", "channels"):
        key, units = next((key, units) for key, units in found.items() if units.structure == structure)
        pruned = keep_units(detector, {key: torch.arange(units.count - 2)})
        assert before - multiply_adds(pruned.model, (64, 96)) == round(2 * each[key])
