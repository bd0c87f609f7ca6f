"""Distillation queries stand beside a detector's object queries, travel with its checkpoint, and answer when told to."""

import pytest
import torch
from transformers import AutoModelForObjectDetection

from leandetr.deployment.pytorch import PlainDetector
from leandetr.detectors.checkpoints.load import load
from leandetr.detectors.query_sets import add_distillation_queries, answer_with
from leandetr.errors import UserError

FAMILIES = ["detr", "conditional_detr", "deformable_detr", "smca_detr"]


@pytest.fixture
def batch(labels):
    torch.manual_seed(0)
    pixel_mask = torch.ones(2, 128, 128, dtype=torch.int64)
    return {"pixel_values": torch.randn(2, 3, 128, 128), "pixel_mask": pixel_mask, "labels": labels(2, 1)}


@pytest.fixture
def detector(tiny_detector):
    found = tiny_detector("detr")
    add_distillation_queries(found.model, 7)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_both_sets_answer_as_one_and_the_loss_is_of_the_object_queries(tiny_detector, batch, family):
    detector = tiny_detector(family)
    add_distillation_queries(detector.model, 7)
    whole = detector.model(batch["pixel_values"], batch["pixel_mask"])  # the object queries' alone, by default
    with torch.no_grad():
        output = detector(**batch)
    assert (output.logits.shape[2], output.distillation.logits.shape[2]) == (12, 7)
    assert output.distillation.hidden.shape[2] == 7
    torch.testing.assert_close((output.logits[-1], output.boxes[-1]), (whole.logits, whole.pred_boxes), atol=1e-5, rtol=1e-5)
    own = detector.family.loss(detector.model, whole, output.logits, output.boxes, batch["labels"])
    torch.testing.assert_close(output.loss, own)


def test_the_two_sets_attend_to_each_other(detector, batch):
    before = detector(batch["pixel_values"])
    with torch.no_grad():
        detector.model.model.query_position_embeddings.weight[12:] += 3
    assert not torch.allclose(detector(batch["pixel_values"]).logits, before.logits, atol=1e-5)


def test_object_queries_are_kept_and_new_ones_drawn_as_the_family_draws_them(tiny_detector):
    plain, detector = tiny_detector("detr"), tiny_detector("detr")
    add_distillation_queries(detector.model)
    before, after = (d.model.model.query_position_embeddings.weight for d in (plain, detector))
    assert torch.equal(after[:12], before)
    assert len(after) == 24
    assert after[12:].std().item() == pytest.approx(before.std().item(), rel=0.2)
    assert after.requires_grad


@pytest.mark.parametrize(("which", "count"), [("object", 12), ("distillation", 7), ("both", 19)])
def test_the_chosen_set_gives_predictions_after_saving_too(detector, batch, tmp_path, which, count):
    answer_with(detector.config, which)
    output = detector(batch["pixel_values"])
    sets = {"object": [output], "distillation": [output.distillation], "both": [output, output.distillation]}[which]
    expected = torch.cat([part.logits[-1] for part in sets], 1)
    detector.save(tmp_path / "saved")
    again = load(tmp_path / "saved")
    logits, boxes = PlainDetector(again)(batch["pixel_values"])
    assert logits.shape[1] == boxes.shape[1] == count
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    predicted = detector.predict(batch)
    for mine, theirs in zip(again.predict(batch), predicted, strict=True):
        torch.testing.assert_close(mine.scores, theirs.scores)
        assert len(mine.scores) == count
    plain = AutoModelForObjectDetection.from_pretrained(tmp_path / "saved")
    assert plain(batch["pixel_values"]).logits.shape[1] == 19


def test_a_detector_that_has_them_keeps_them(detector):
    before = detector.model.model.query_position_embeddings.weight.clone()
    add_distillation_queries(detector.model)
    assert torch.equal(detector.model.model.query_position_embeddings.weight, before)
    with pytest.raises(UserError, match="already has 7 distillation queries; do not ask for 9"):
        add_distillation_queries(detector.model, 9)


def test_what_cannot_be_is_refused(tiny_detector, detector):
    with pytest.raises(UserError, match="this rt_detr_v2 student has no table of learned queries"):
        add_distillation_queries(tiny_detector("rt_detr_v2").model)
    plain = tiny_detector("detr")
    with pytest.raises(UserError, match="0 distillation queries are too few"):
        add_distillation_queries(plain.model, 0)
    with pytest.raises(UserError, match="object queries alone"):
        answer_with(plain.config, "both")
    with pytest.raises(UserError, match="unknown set of queries 'objects': did you mean 'object'"):
        answer_with(detector.config, "objects")
