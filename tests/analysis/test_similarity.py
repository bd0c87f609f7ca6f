"""Mean cosines equal a plain loop over the pairs of queries, and say when two sets are one."""

import json

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from leandetr.analysis.similarity import mean_cosines, similarity
from leandetr.detectors.query_sets import add_distillation_queries
from leandetr.errors import UserError


def test_means_equal_a_loop_over_all_pairs():
    torch.manual_seed(0)
    objects, others = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 5, 8)
    found = mean_cosines(objects, others)
    for layer in range(2):
        for image in range(3):
            a, b = objects[layer, image], others[layer, image]
            between = [F.cosine_similarity(x, y, dim=0).item() for x in a for y in b]
            assert found["between"][layer, image].item() == pytest.approx(sum(between) / 20, abs=1e-6)
            for states, name in ((a, "within_object"), (b, "within_distillation")):
                count = len(states)
                pairs = [(i, j) for i in range(count) for j in range(count) if i != j]
                within = [F.cosine_similarity(states[i], states[j], dim=0).item() for i, j in pairs]
                assert found[name][layer, image].item() == pytest.approx(sum(within) / len(pairs), abs=1e-6)


def test_equal_sets_of_one_direction_are_at_one_and_orthogonal_ones_at_zero():
    same = torch.tensor([1.0, 2.0, 0.0]).expand(1, 1, 4, 3)
    assert [value.item() for value in mean_cosines(same, 3 * same).values()] == pytest.approx([1, 1, 1])
    apart = mean_cosines(torch.tensor([1.0, 0.0]).expand(1, 1, 4, 2), torch.tensor([0.0, 1.0]).expand(1, 1, 4, 2))
    assert apart["between"].item() == pytest.approx(0)


def test_one_query_has_no_pair_within_its_set():
    assert mean_cosines(torch.ones(1, 1, 1, 2), torch.ones(1, 1, 2, 2))["within_object"].isnan().all()


def test_every_kept_epoch_gets_its_line(saved, split, tmp_path):
    with_queries = {"change": lambda detector: add_distillation_queries(detector.model, 7)}
    run = saved("run", **with_queries)
    saved("run/training/epoch-1", noise=0.3, **with_queries)
    found = similarity([run], split, tmp_path / "out", images=2)
    assert json.loads((tmp_path / "out" / "similarity.json").read_text()) == found
    assert found["images"] == 2
    assert [model["name"] for model in found["models"]] == ["run, epoch 1", "run"]
    assert [layer["layer"] for layer in found["models"][0]["layers"]] == [1, 2, 3]
    assert found["models"][0]["layers"] != found["models"][1]["layers"]
    assert all(-1 <= layer["between"] <= 1 for model in found["models"] for layer in model["layers"])
    assert Image.open(tmp_path / "out" / "similarity.png").size[0] > 1000


def test_a_detector_of_one_set_is_refused(saved, split, tmp_path):
    with pytest.raises(UserError, match=r"plain has no distillation queries .* distilled with --method hard-label"):
        similarity([saved("plain")], split, tmp_path / "out")
    assert not (tmp_path / "out").exists()
