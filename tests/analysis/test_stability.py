"""IS as DETRDistill's supplement defines it: counted in a loop, zero for a stable matching."""

import json

import pytest
import torch
from PIL import Image

from leandetr.analysis.stability import assigned_objects, assigned_queries, instability, stability
from leandetr.errors import UserError
from leandetr.heads import Head
from leandetr.losses import HungarianMatcher, pad_targets
from leandetr.losses.matcher import Assignment


def pairs(*entries):
    """(layer, image, query, object) entries -> Assignment."""
    return Assignment(*torch.tensor(entries).T)


def test_an_object_that_moves_counts_twice_and_once_among_objects():
    found = pairs((0, 0, 1, 0), (0, 0, 2, 1), (1, 0, 3, 0), (1, 0, 2, 1))
    assert instability(assigned_objects(found, (2, 1, 5))).tolist() == [[2]]
    assert instability(assigned_queries(found, (2, 1, 2))).tolist() == [[1]]


def test_two_queries_that_swap_objects_count_twice():
    found = pairs((0, 0, 1, 0), (0, 0, 2, 1), (1, 0, 2, 0), (1, 0, 1, 1))
    assert instability(assigned_objects(found, (2, 1, 5))).tolist() == [[2]]


def test_is_equals_a_loop(labels):
    generator = torch.Generator().manual_seed(1)
    logits, boxes = torch.randn(4, 2, 9, 5, generator=generator), torch.rand(4, 2, 9, 4, generator=generator)
    assignment = HungarianMatcher(2, 5, 2, Head.SIGMOID)(logits, boxes, pad_targets(labels(4, 2)))
    found = instability(assigned_objects(assignment, (4, 2, 9)))
    entries = set(zip(*(column.tolist() for column in assignment)))
    for k in range(3):
        for image in range(2):

            def matched(stage, query, image=image):
                return next((m for m in range(4) if (stage, image, query, m) in entries), -1)

            assert found[k, image] == sum(matched(k, n) != matched(k + 1, n) for n in range(9))


def repeat_the_first_stage(detector):
    """Every decoder stage after the first adds nothing to its input."""
    for layer in detector.model.model.decoder.layers[1:]:
        layer.forward = lambda hidden_states, *args, **kwargs: hidden_states


def test_a_perfectly_stable_model_is_at_zero(saved, split, tmp_path, monkeypatch):
    from leandetr.analysis import stability as module

    path, load = saved("stable"), module.opened

    def load_stable(source):
        detector = load(source)
        repeat_the_first_stage(detector)
        return detector

    moving = stability([path], split, tmp_path / "moving")["models"][0]["stages"]
    monkeypatch.setattr(module, "opened", load_stable)
    stages = stability([path], split, tmp_path / "stable-out")["models"][0]["stages"]
    assert [(s["instability"], s["objects_moved"]) for s in stages] == [(0, 0), (0, 0)]
    assert any(s["instability"] > 0 for s in moving)


def test_detectors_of_other_depths_side_by_side(saved, split, tmp_path):
    models = [saved("teacher"), saved("student", decoder_layers=2), saved("student/training/epoch-1", "deformable_detr")]
    found = stability(models, split, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "stability.json").read_text()) == found
    assert [(m["name"], len(m["stages"])) for m in found["models"]] == [("teacher", 2), ("student", 1), ("student, epoch 1", 2)]
    for model in found["models"]:
        for stage in model["stages"]:
            assert 0 <= stage["objects_moved"] <= 1
            assert 0 <= stage["instability"] <= 2 * found["objects"] / found["images"]
    assert Image.open(tmp_path / "out" / "stability.png").size[0] > 1000


def test_one_stage_has_nothing_to_compare(saved, split, tmp_path):
    with pytest.raises(UserError, match="shallow has one decoder stage"):
        stability([saved("shallow", decoder_layers=1)], split, tmp_path / "out")


def test_images_without_objects_are_refused(saved, split, tmp_path):
    coco = json.loads(split.annotations.read_text())
    (tmp_path / "empty.json").write_text(json.dumps(coco | {"annotations": []}))
    nothing = type(split)(tmp_path / "empty.json", split.images)
    with pytest.raises(UserError, match=r"empty\.json hold no objects"):
        stability([saved()], nothing, tmp_path / "out")
