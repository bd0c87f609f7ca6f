"""Mean cosines equal a plain loop over the pairs of queries, and say when two sets are one."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from leandetr.analysis.similarity import States, by_layer, correlations, mean_cosines, similarity
from leandetr.data.batches import collate
from leandetr.data.coco import CocoDataset
from leandetr.data.transforms import eval_transform
from leandetr.detectors.checkpoints.load import load
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


def test_means_agree_where_pairs_do_not():
    """States that share one direction and differ in others, each of length 1: pairs are at 1/2, means of n at n / (n + 1)."""
    eye = torch.eye(9)
    objects, others = (eye[0] + eye[axes] for axes in (slice(1, 5), slice(5, 9)))
    assert mean_cosines(objects[None, None], others[None, None])["between"].item() == pytest.approx(1 / 2)
    pairs = mean_cosines(objects[None, None].expand(1, 3, 4, 9), others[None, None].expand(1, 3, 4, 9))
    states = States({name: values.T for name, values in pairs.items()}, torch.stack([objects.mean(0), others.mean(0)])[:, None])
    (layer,) = by_layer(states, states)
    assert layer["between"] == pytest.approx(1 / 2)
    assert layer["of_means"] == pytest.approx(4 / 5)
    assert layer["to_first"] == pytest.approx(1)


def test_correlation_is_numpys():
    a, b = torch.randn(2, 3, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = [np.corrcoef(x, y)[0, 1] for x, y in zip(a.numpy(), b.numpy())]
    assert correlations(a, b).tolist() == pytest.approx(expected)


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
    first, last = ([layer["to_first"] for layer in model["layers"]] for model in found["models"])
    assert first == pytest.approx([1, 1, 1])
    assert all(-1 <= value < 0.999 for value in last)
    detector = load(run)
    images = CocoDataset(split, eval_transform(detector.preprocessing))
    output = detector(collate([images[0], images[2]])["pixel_values"])
    means = [answer.hidden.mean((1, 2)) for answer in (output, output.distillation)]
    of_means = [layer["of_means"] for layer in found["models"][-1]["layers"]]
    assert of_means == pytest.approx(F.cosine_similarity(*means, dim=-1).tolist(), abs=1e-4)
    assert Image.open(tmp_path / "out" / "similarity.png").size[0] > 1000


def test_a_detector_of_one_set_is_refused(saved, split, tmp_path):
    with pytest.raises(UserError, match=r"plain has no distillation queries .* distilled with --method hard-label"):
        similarity([saved("plain")], split, tmp_path / "out")
    assert not (tmp_path / "out").exists()
