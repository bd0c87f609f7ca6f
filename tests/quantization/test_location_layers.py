"""Layers whose output is a place (a box, a reference point, an offset) are rounded in no family unless somebody asks for it."""

from fnmatch import fnmatchcase

import pytest
import torch
from torch import nn

from leandetr.detectors.create import create
from leandetr.detectors.names import MODELS
from leandetr.quantization import LowBit, Static, WeightOnly, quantize
from leandetr.quantization.layers.modules import is_quantizable, names_of

HEAD, SAMPLING = "bbox_predictor.layers.?", "*.sampling_offsets"
REFINED = ["model.decoder.bbox_embed.?.layers.?", "bbox_embed.?.layers.?"]
PROPOSED = ["model.enc_out_bbox_embed.?.layers.?"]
#: by hand, from the models' code: what each of a family's layers that answer with places is called
PLACES = {
    "detr": [HEAD],
    "swin_detr": [HEAD],
    "conditional_detr": [HEAD, "model.decoder.ref_point_head.layers.?"],
    "deformable_detr": ["bbox_embed.?.layers.?", "model.reference_points", SAMPLING],
    "deformable_detr_refine": [*REFINED, "model.reference_points", SAMPLING],
    "deformable_detr_two_stage": [*REFINED, SAMPLING],
    "dab_detr": [
        HEAD,
        "model.decoder.bbox_embed.layers.?",
        "model.decoder.ref_point_head.layers.?",
        "model.decoder.ref_anchor_head.layers.?",
    ],
    "smca_detr": [
        HEAD,
        "model.decoder.reference_predictor.layers.?",
        "model.decoder.layers.?.offset",
        "model.decoder.layers.?.scale",
    ],
    "adamixer": ["model.decoder.layers.?.box_head.?", "model.decoder.layers.?.sampling.offsets"],
    "rt_detr": ["model.decoder.bbox_embed.?.layers.?", "model.enc_bbox_head.layers.?", SAMPLING],
    "rt_detr_v2": [*REFINED, "model.enc_bbox_head.layers.?", SAMPLING],
    "d_fine": [*REFINED, "model.enc_bbox_head.layers.?", "model.decoder.pre_bbox_head.layers.?", SAMPLING],
    "deimv2": [*REFINED, "model.enc_bbox_head.layers.?", "model.decoder.pre_bbox_head.layers.?", SAMPLING],
    "lw_detr": [*PROPOSED, "bbox_embed.layers.?", "model.decoder.ref_point_head.layers.?", SAMPLING],
    "rf_detr": [*PROPOSED, "bbox_embed.layers.?", "model.decoder.ref_point_head.layers.?", SAMPLING],
}
DECODER = {"decoder_layers": 2, "num_queries": 12, "decoder_ffn_dim": 64}
VIT = {"backbone_config.num_hidden_layers": 2, "backbone_config.num_attention_heads": 2, "backbone_config.out_indices": [1, 2]}
OWN = {
    "dab_detr": {"hidden_size": 64, "encoder_layers": 1},
    "adamixer": {"d_model": 64},
    "swin_detr": {"d_model": 64, "encoder_layers": 1, "backbone_config.embed_dim": 24},
    "lw_detr": VIT | {"d_model": 64, "backbone_config.hidden_size": 36, "backbone_config.window_block_indices": [0]},
    "rf_detr": VIT | {"d_model": 64, "backbone_config.hidden_size": 32, "backbone_config.patch_size": 16}
    | {"backbone_config.num_windows": 2},
}  # fmt: skip
OWN_BACKBONES = ("swin_detr", "lw_detr", "rf_detr")


@pytest.fixture
def tiny(classes):
    def build(name):
        torch.manual_seed(0)
        overrides = DECODER | OWN.get(name, {"d_model": 64, "encoder_layers": 1})
        return create(name, classes, (128, 128), None if name in OWN_BACKBONES else "test_resnet", overrides=overrides)

    return build


def test_every_model_is_here():
    assert PLACES.keys() == MODELS.keys()


@pytest.mark.parametrize("name", PLACES)
def test_places_are_computed_in_float(tiny, name):
    layers = {names[0]: (layer, names) for layer, names in names_of(tiny(name).model).items() if is_quantizable(layer)}
    places = [key for key, (_, names) in layers.items() if any(fnmatchcase(n, p) for n in names for p in PLACES[name])]
    for pattern in PLACES[name]:
        assert any(fnmatchcase(n, pattern) for _, names in layers.values() for n in names), pattern
    # two or four outputs are a point or a box, whatever a layer is called
    places += [key for key, (layer, _) in layers.items() if isinstance(layer, nn.Linear) and layer.out_features in (2, 4)]
    for key in places:
        _, names = layers[key]
        assert LowBit().setting(names)[0] is None, key
        assert Static().setting(names)[0] == WeightOnly(), key  # weights of 8 bits, and float arithmetic


@pytest.mark.parametrize("name", ["smca_detr", "adamixer"])
@pytest.mark.parametrize("config", [Static(calibration_images=2), LowBit(calibration_images=2)], ids=lambda config: config.name)
def test_quantize_leaves_them_float(tiny, labels, name, config):
    mask = torch.ones(2, 128, 128, dtype=torch.int64)
    batch = {"pixel_values": torch.randn(2, 3, 128, 128), "pixel_mask": mask, "labels": labels(2, 1)}
    record = quantize(tiny(name), config, [batch]).config.quantization_config
    for pattern in PLACES[name]:
        rounded = [key for key in record.as_asked if fnmatchcase(key, pattern)]
        assert not rounded
        assert any(fnmatchcase(key, pattern) for key in (*record.left_float, *record.kept_wide))


def test_an_override_rounds_them_all_the_same(tiny):
    config = LowBit(overrides={"*.offset": "low-bit"})
    assert config.setting(["model.decoder.layers.0.offset"])[0].name == "low-bit"
