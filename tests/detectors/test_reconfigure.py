"""A trained detector with other configuration values: what fits is kept, what shrank is a selection, and every family takes
other image sizes and numbers of queries."""

import pytest
import torch

from leandetr.detectors.names import MODELS, missing
from leandetr.detectors.reconfigure import reconfigure, resize_images, resize_queries
from leandetr.errors import UserError

NAMES = [name for name in MODELS if not missing(name)]


def answers(detector, size=(128, 128)):
    pixels = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = detector(pixels)
    return output.logits, output.boxes


@pytest.mark.parametrize("name", NAMES)
def test_every_family_takes_other_images_and_fewer_queries(tiny_detector, name, labels):
    detector = tiny_detector(name)
    found = resize_queries(resize_images(detector, (192, 128)), 9)
    assert found.preprocessing.size == (192, 128)
    logits, _ = answers(found, (192, 128))
    assert logits.shape[:3] == (3, 1, 9)
    loss = found.train()(torch.randn(1, 3, 192, 128), labels=labels(2)).loss
    assert torch.isfinite(loss)
    assert resize_queries(found.eval(), 14).config.num_queries == 14


@pytest.mark.parametrize("name", ["detr", "dab_detr", "adamixer", "lw_detr"])
def test_fewer_learned_queries_are_the_first(tiny_detector, name):
    detector = tiny_detector(name)
    found = resize_queries(detector, 9)
    key = {"dab_detr": "query_refpoint_embeddings", "adamixer": "query_content", "lw_detr": "query_feat"}
    key = key.get(name, "query_position_embeddings")
    old, new = (getattr(one.model.model, key).weight for one in (detector, found))
    groups = getattr(detector.config, "group_detr", 1) if name == "lw_detr" else 1
    assert torch.equal(new, torch.cat([old[12 * group : 12 * group + 9] for group in range(groups)]))


@pytest.mark.parametrize("name", ["detr", "deformable_detr_two_stage", "rt_detr_v2", "d_fine", "rf_detr", "adamixer"])
def test_with_fewer_layers_the_first_answer_as_they_did(tiny_detector, name):
    detector = tiny_detector(name)
    found, change = reconfigure(detector, {"decoder_layers": 2})
    assert not change.new
    assert not change.selected
    assert change.dropped
    for now, then in zip(answers(found), answers(detector), strict=True):
        if name != "d_fine":  # whose last layer has other constants
            torch.testing.assert_close(now, then[:2], rtol=0, atol=1e-5)


def test_narrower_layers_have_a_selection_at_even_distances(tiny_detector):
    detector = tiny_detector("detr")
    found, change = reconfigure(detector, {"decoder_ffn_dim": 32})
    old, new = (one.model.model.decoder.layers[0].mlp for one in (detector, found))
    assert torch.equal(new.fc1.weight, old.fc1.weight[::2])
    assert torch.equal(new.fc2.weight, old.fc2.weight[:, ::2])
    assert not change.new
    assert "selected from larger ones (first model.decoder.layers.0.mlp.fc1.weight)" in str(change)


def test_values_without_weights_change_no_weight_and_use_no_randomness(tiny_detector):
    detector = tiny_detector("rt_detr_v2")
    torch.manual_seed(3)
    found, _ = reconfigure(detector, {"weight_loss_bbox": 7.0})
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))
    assert found.config.weight_loss_bbox == 7.0
    assert detector.config.weight_loss_bbox == 5.0
    assert all(torch.equal(now, then) for now, then in zip(answers(found), answers(detector), strict=True))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda d: reconfigure(d, {"decoder_layer": 2}), "decoder_layer: rt_detr_v2 has no such .*mean model.decoder_layers"),
        (lambda d: reconfigure(d, {"decoder_layers": [2]}), r"model: rt_detr_v2 refuses .*expected int, got list"),
        (lambda d: reconfigure(d, {"num_labels": 2}), "model.num_labels: it follows from the data"),
        (lambda d: resize_images(d, (100, 128)), "needs multiples of 32; the nearest valid size is 96 128"),
        (
            lambda d: resize_images(d, (32, 32)),
            "image size 32 32: 30 queries cannot be chosen among the 21 cells .* at least 64 64",
        ),
        (lambda d: resize_queries(d, 5000), "5000 queries cannot be chosen among the 336 cells of an image of 128 128"),
        (lambda d: resize_queries(d, 0), "0 queries are too few"),
    ],
)
def test_what_cannot_be_is_a_sentence(tiny_detector, change, sentence):
    detector = tiny_detector("rt_detr_v2", num_queries=30)
    with pytest.raises(UserError, match=sentence) as caught:
        change(detector)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_frozen_up_to_the_memory_learns_nothing(tiny_detector, name, labels):
    detector = tiny_detector(name).train()
    detector.freeze("encoder")
    before = {key: value.clone() for key, value in detector.model.state_dict().items()}
    output = detector.train()(torch.randn(2, 3, 128, 128), labels=labels(2, 1))
    assert not output.memory.tokens.requires_grad
    output.loss.backward()
    after = detector.model.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before if "running" in key and "decoder." not in key)
    frozen = [key for key, parameter in detector.model.named_parameters() if not parameter.requires_grad]
    assert frozen
    detector = tiny_detector(name)
    detector.freeze("backbone")
    assert {key for key, p in detector.model.named_parameters() if not p.requires_grad} < set(frozen)
