"""The counted parameters are the published ones, and the counted work is what a formula gives."""

import pytest

from leandetr.detectors.create import configure
from leandetr.detectors.describe import COCO, count_multiply_adds, count_parameters, describe
from leandetr.detectors.families.registry import FAMILIES
from leandetr.detectors.names import MODELS
from leandetr.errors import UserError

#: millions, as the papers' tables and repositories print them, for ResNet-50 where a family has several backbones
PUBLISHED = {
    "detr": 41,
    "conditional_detr": 44,
    "deformable_detr": 40,
    "dab_detr": 44,
    "smca_detr": 42,
    "adamixer": 135,
    "rt_detr": 42,
    "d_fine": 31,
    "lw_detr": 14.6,
}


@pytest.mark.parametrize(("name", "millions"), PUBLISHED.items())
def test_parameters_are_the_published_ones(name, millions):
    config, _ = configure(name, COCO, FAMILIES[MODELS[name].model_type].published_size)
    assert count_parameters(config) / 1e6 == pytest.approx(millions, rel=0.03)


def test_a_decoder_layer_costs_its_matrix_products():
    """DETR with one decoder layer more: the layer's products with N queries, S cells and width D."""
    small = {"num_queries": 12, "encoder_layers": 1, "d_model": 64, "decoder_ffn_dim": 64}
    costs = [
        count_multiply_adds(
            configure("detr", COCO, (64, 96), "test_resnet", None, small | {"decoder_layers": layers})[0], (64, 96)
        )
        for layers in (1, 2)
    ]
    queries, cells, width = 12, 2 * 3, 64
    self_attention = 4 * queries * width**2 + 2 * queries**2 * width
    co_attention = 2 * (queries + cells) * width**2 + 2 * queries * cells * width
    assert costs[1] - costs[0] == self_attention + co_attention + 2 * queries * width * 64


def test_a_description_says_all_that_can_be_known_before_training():
    found = describe("lw_detr")
    assert (found.image_size, found.size_divisor, found.backbone) == ((640, 640), 64, "lw_detr_vit")
    assert found.multiply_adds / 1e9 == pytest.approx(16.6, rel=0.1)  # published for LW-DETR-small, sampling included
    assert found.source.startswith("https://")
    assert all(family.source for family in FAMILIES.values())


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(UserError, match=r"did you mean.*adamixer"):
        describe("adamixr")
