"""What a new detector of DETR's lineage starts from: queries that differ, attention that is not uniform, classes at 1 %."""

import pytest
import torch

from leandetr.detectors.create import create
from leandetr.heads import Head

NAMES = ["detr", "conditional_detr", "dab_detr", "deformable_detr", "deformable_detr_refine", "deformable_detr_two_stage"]


@pytest.fixture(scope="module", params=NAMES)
def new(request):
    from leandetr.structures import ClassMap

    torch.manual_seed(0)
    width = "hidden_size" if request.param == "dab_detr" else "d_model"
    small = {width: 64, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 16, "decoder_ffn_dim": 96, "dropout": 0.0}
    classes = ClassMap(("disc", "star", "ring"), (1, 2, 3))
    return create(request.param, classes, (128, 128), "test_resnet", overrides=small).eval()


def test_matrices_are_xavier_uniform_and_queries_unit_normal(new):
    trunk = new.model.model
    feed_forward = dict(trunk.decoder.layers[1].named_modules())
    first = feed_forward.get("mlp.fc1") or feed_forward["fc1"]
    bound = (6 / sum(first.weight.shape)) ** 0.5
    assert 0.98 * bound < first.weight.abs().max() <= bound
    for name in ("query_position_embeddings", "query_refpoint_embeddings"):
        if getattr(trunk, name, None) is not None:
            assert 0.8 < getattr(trunk, name).weight.std() < 1.25


@torch.no_grad()
def test_answers_at_the_start(new):
    """Sigmoid heads begin near 0.01, and boxes at their reference points; different queries answer differently."""
    output = new(torch.randn(1, 3, 128, 128))
    if new.head == Head.SIGMOID:
        assert 0.001 < output.logits.sigmoid().mean() < 0.1
    assert output.hidden[-1, 0].std(0).mean() > 0.01
    if new.config.model_type == "deformable_detr" and not new.config.two_stage:
        expected = torch.tensor(-2.0).sigmoid().expand(1, 16, 2)
        torch.testing.assert_close(output.boxes[0, ..., 2:], expected, atol=1e-4, rtol=0)
    if new.config.model_type == "dab-detr":
        anchors = new.model.model.query_refpoint_embeddings.weight.sigmoid()
        torch.testing.assert_close(output.boxes[0, 0], anchors, atol=1e-3, rtol=0)
