"""The plane's numbers are what they say, on samples of which the truth is known and on saved detectors."""

import json
import math

import pytest
import torch
from PIL import Image

from leandetr.analysis.information import Samples, box_information, estimates, information, pick
from leandetr.detectors.alignment import align_queries
from leandetr.errors import UserError


def samples(noise, count=400):
    generator = torch.Generator().manual_seed(0)
    classes = torch.randint(0, 2, (count,), generator=generator)
    boxes = torch.rand(count, 4, generator=generator)
    pixels = torch.randn(count, 48, generator=generator)
    features = pixels[:, :8] + noise * torch.randn(count, 8, generator=generator)
    states = torch.randn(count, 6, generator=generator) * noise
    states[:, 0] += 20.0 * classes
    found = boxes + noise * torch.randn(count, 4, generator=generator)
    return Samples(10, [pixels[:, :8]], [features], states, found, boxes, classes)


def test_less_noise_is_more_information():
    clear, vague = estimates(samples(0.05)), estimates(samples(2.0))
    assert clear["input"]["bits"] > vague["input"]["bits"] + 1
    assert clear["box"]["bits"] > vague["box"]["bits"] + 1
    assert clear["class"]["bits"] == pytest.approx(1, abs=0.05)
    assert vague["class"]["bits"] <= 1.05
    assert clear["output"]["bits"] == pytest.approx(clear["class"]["bits"] + clear["box"]["bits"])
    assert clear["output"]["error"] == pytest.approx(math.hypot(clear["class"]["error"], clear["box"]["error"]))
    assert [abs(clear[name]["shuffled"]) < 0.3 for name in ("input", "class", "box")] == [True] * 3


def test_boxes_that_only_the_class_foretells_are_no_information_given_the_class():
    generator = torch.Generator().manual_seed(0)
    classes = torch.arange(400) % 2
    found = torch.rand(400, 4, generator=generator) + 10 * classes[:, None]
    boxes = torch.rand(400, 4, generator=generator) + 10 * classes[:, None]
    assert box_information(found, torch.cat([boxes, classes[:, None]], 1)) == pytest.approx(0, abs=0.15)


def test_a_cell_is_paired_with_its_own_pixels():
    values = torch.arange(6.0).reshape(1, 1, 2, 3)
    pixels = values.repeat_interleave(8, 2).repeat_interleave(8, 3).expand(1, 3, 16, 24)
    patches, features = pick(values, pixels, 100, torch.Generator().manual_seed(0))
    assert sorted(features.flatten().tolist()) == [0, 1, 2, 3, 4, 5]
    torch.testing.assert_close(patches, features.expand(6, 48))


def test_a_training_is_followed_and_queries_are_drawn(saved, more, tmp_path):
    run = saved("run", change=lambda detector: align_queries(detector.model, "cross"))
    saved("run/training/epoch-1", noise=0.3)
    found = information([run], more, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "information.json").read_text()) == found
    assert [model["name"] for model in found["models"]] == ["run, epoch 1", "run"]
    assert [model["queries"]["aligned"] for model in found["models"]] == [False, True]
    assert len(found["models"][0]["queries"]["layers"]) == 3
    for model in found["models"]:
        assert model["class"]["bits"] < found["class_entropy"] + 0.2
        assert math.isfinite(model["input"]["bits"])
    for name in ("information.png", "queries.png"):
        assert Image.open(tmp_path / "out" / name).size[0] > 900


def test_a_detector_whose_queries_cannot_be_reached_has_the_plane_alone(saved, more, tmp_path):
    small = {"d_model": 32, "decoder_layers": 2, "num_queries": 6, "decoder_ffn_dim": 32}
    found = information([saved("mixer", "adamixer", small=small)], more, tmp_path / "out")
    assert found["models"][0]["queries"] is None
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["information.json", "information.png"]


def test_too_few_objects_are_refused(saved, split, tmp_path):
    with pytest.raises(UserError, match=r"instances_val\.json hold \d+ objects, too few .* at least 50"):
        information([saved()], split, tmp_path / "out")
