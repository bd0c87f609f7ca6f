"""What `create` promises: a valid detector for a name and a size, and one sentence for what it cannot build."""

import pytest
import torch

from leandetr.data.transforms import eval_transform, normalised
from leandetr.detectors.build import build
from leandetr.detectors.checkpoints.load import load
from leandetr.detectors.create import create
from leandetr.detectors.names import MODELS
from leandetr.detectors.spec import NewDetector
from leandetr.errors import UserError

SMALL = {"d_model": 32, "decoder_layers": 2, "encoder_layers": 1, "num_queries": 4}


@pytest.mark.parametrize(
    ("name", "size", "backbone", "overrides", "sentence"),
    [
        ("rtdetr_v2", (64, 64), None, {}, "unknown model 'rtdetr_v2': did you mean 'rt_detr_v2'"),
        ("detr", (64, 64), "resnet1800", {}, "unknown backbone 'resnet1800': did you mean 'resnet1"),
        ("detr", (64, 64), "resnet18", {"decoder_layer": 3}, r"model.decoder_layer: .*did you mean model.decoder_layers"),
        ("detr", (64, 64), "resnet18", {"decoder_layers": "many"}, "model: detr refuses .*decoder_layers.*many"),
        ("detr", (64, 64), "resnet18", {"d_model": 30}, "model.d_model: 30 is not divisible by its 8 attention heads"),
        ("deformable_detr", (64, 64), "resnet18", {"d_model": 48}, "model: no deformable_detr can be built with .*48"),
        ("rt_detr_v2", (64, 64), "resnet18", {"decoder_layers": 1}, "model.decoder_layers: rt_detr_v2 needs at least 2"),
        ("detr", (64, 64), "resnet18", {"decoder_layers": 0}, "model.decoder_layers: detr needs at least 1"),
        ("detr", (64, 64), "resnet18", {"num_labels": 3}, "model.num_labels: it follows from the data"),
        ("rt_detr", (100, 130), "resnet18", {}, "multiples of 32; the nearest valid size is 96 128"),
        ("detr", (16, 64), "resnet18", {}, "at least 32 pixels; the nearest valid size is 32 64"),
        ("rt_detr", (0, 70), "resnet18", {}, "multiples of 32; the nearest valid size is 32 64"),
        ("detr", (64, 64), "resnet99999", {}, r"the nearest of 1\d{3}: resnet(, \S+){4}\)$"),
        ("rt_detr_v2", (64, 64), "resnet18", {"num_queries": 300}, "model.num_queries: 300 queries .* 84 cells .* at most 84"),
        ("detr", (64, 64), "resnet18", {"backbone_config.out_indice": [1]}, "'out_indice': did you mean 'out_indices'"),
        ("rt_detr", (64, 64), None, {"backbone_config.depth": [1]}, "'depth': did you mean 'depths'"),
        ("detr", (64, 64), "resnet18", {"backbone_config.out_indices": [9]}, "model.backbone_config: no resnet18 can be built"),
    ],
)
def test_what_cannot_be_built_is_said_in_one_sentence(classes, name, size, backbone, overrides, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        create(name, classes, size, backbone=backbone, overrides=overrides)
    assert "\n" not in str(caught.value)


def test_overrides_reach_the_model_and_its_backbone(classes):
    shallow = {"backbone_config.depths": [2, 2, 2, 2], "backbone_config.layer_type": "basic"}
    shallow |= {"backbone_config.hidden_sizes": [16, 24, 32, 40], "backbone_config.embedding_size": 16}
    found = create("rt_detr_v2", classes, (64, 64), overrides=SMALL | shallow)
    assert found.config.decoder_layers == len(found.model.model.decoder.layers) == 2
    assert found.config.encoder_in_channels == [24, 32, 40]
    assert found.config.encoder_hidden_dim == found.config.d_model == 32
    assert found.config.backbone_config.depths == [2, 2, 2, 2]


@pytest.mark.parametrize("name", ["detr", "deformable_detr", "rt_detr_v2"])
def test_equal_seeds_give_equal_weights(classes, name):
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(create(name, classes, (64, 64), backbone="test_resnet", overrides=SMALL).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert any(not torch.equal(states[0][key], states[2][key]) for key in states[0])


def test_queries_default_to_what_the_image_has_cells_for(classes):
    few = {key: value for key, value in SMALL.items() if key != "num_queries"}
    found = create("rt_detr", classes, (64, 96), backbone="test_resnet", overrides=few).eval()
    assert found.config.num_queries == 8 * 12 + 4 * 6 + 2 * 3
    with torch.no_grad():
        assert found(torch.randn(1, 3, 64, 96)).boxes.shape == (2, 1, 126, 4)


def test_box_refinement_is_a_model_of_its_own(classes):
    assert create("deformable_detr_refine", classes, (64, 64), "test_resnet", overrides=SMALL).config.with_box_refine
    assert not create("deformable_detr", classes, (64, 64), "test_resnet", overrides=SMALL).config.with_box_refine


def test_every_model_has_a_description_and_a_family():
    assert {"detr", "conditional_detr", "deformable_detr", "deformable_detr_refine", "rt_detr", "rt_detr_v2"} <= set(MODELS)
    assert all(model.description for model in MODELS.values())


def test_normalisation_is_the_backbones(classes):
    assert create("rt_detr", classes, (64, 64), "tf_efficientnet_lite0", overrides=SMALL).preprocessing.mean == (0.5, 0.5, 0.5)
    assert create("detr", classes, (64, 64), "resnet10t", overrides=SMALL).preprocessing.mean == (0.485, 0.456, 0.406)


def test_the_shorter_side_is_kept_through_saving_and_training_sizes(classes, tmp_path):
    small = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "num_queries": 4}
    detector = create("detr", classes, 96, "test_resnet", overrides=small)
    detector.save(tmp_path)
    found = load(tmp_path)
    for size, seen in (((480, 640), (96, 128)), ((640, 480), (128, 96)), ((300, 900), (53, 160))):  # DETR's rule: 800 and 1333
        photograph = torch.zeros(3, *size, dtype=torch.uint8)
        pixels, _, _ = eval_transform(found.preprocessing)(photograph, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), 0)
        assert tuple(pixels.shape[-2:]) == seen
        assert found(normalised(pixels[None], found.preprocessing)).boxes.shape == (1, 1, 4, 4)
    with pytest.raises(
        UserError, match="rt_detr takes images of one size, whose sides are multiples of 32; name height and width"
    ):
        create("rt_detr", classes, 96)
    assert build(NewDetector(checkpoint=tmp_path, image_size=64), classes).preprocessing.shortest_edge == 64
