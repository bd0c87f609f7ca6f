"""What is chosen is within the goal and the best there is; what comes of it is a detector like any other."""

import json

import numpy as np
import pytest
from PIL import Image

from leandetr.data.coco import class_map_of, find_split
from leandetr.data.shapes import write_shapes
from leandetr.detectors.checkpoints.load import load
from leandetr.detectors.create import create
from leandetr.errors import UserError
from leandetr.trimming import TrimGoal
from leandetr.trimming import trim as module
from leandetr.trimming.goal import Point, frontier
from leandetr.trimming.latency import _fitted


@pytest.fixture
def points():
    rng = np.random.default_rng(0)
    return [
        Point(layers, count, (side, side), float(rng.random()), float(rng.random() + layers))
        for layers in (1, 2, 3)
        for count in (5, 10)
        for side in (64, 128)
    ]


def test_the_frontier_is_what_no_other_surpasses(points):
    best = [p for p in points if not any(q.ap >= p.ap and q.latency_ms <= p.latency_ms for q in points if q is not p)]
    assert frontier(points) == sorted(best, key=lambda point: -point.latency_ms)


def test_the_goal_chooses_the_best_within_it(points):
    full = points[-1]
    chosen = TrimGoal(max_ap_drop=0.1).choose(points, full)
    assert chosen.latency_ms == min(point.latency_ms for point in points if full.ap - point.ap <= 0.1)
    chosen = TrimGoal(target_latency_ms=2.5).choose(points, full)
    assert chosen.ap == max(point.ap for point in points if point.latency_ms <= 2.5)
    with pytest.raises(UserError, match=r"0.1 ms cannot be met by trimming: the fastest of 12 detectors, with 1 layers"):
        TrimGoal(target_latency_ms=0.1).choose(points, full)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"max_ap_drop": -0.1}, "max_ap_drop: input should be greater than or equal to 0"),
        ({"target_latency_ms": 0}, "target_latency_ms: input should be greater than 0"),
        ({"max_ap_drop": 0.1, "target_latency_ms": 5}, "two goals; give one of them"),
        ({"engine": "onnx"}, "'onnx' is none of pytorch, "),
        ({"max_drop": 0.1}, "did you mean 'max_ap_drop'"),
    ],
)
def test_goals_that_are_none(wrong, sentence):
    with pytest.raises(UserError, match=sentence):
        TrimGoal(**wrong)


def test_between_the_measured_ones_time_follows_layers_and_queries():
    def law(layers, count):
        return 3.0 + layers * (0.5 + 0.01 * count)

    time = _fitted({corner: law(*corner) for corner in ((6, 100), (1, 100), (6, 25))})
    for layers in range(1, 7):
        for count in (25, 50, 100):
            assert time(layers, count) == pytest.approx(law(layers, count))
    noisy = _fitted({(6, 100): 5.0, (1, 100): 5.5, (6, 25): 6.0})
    assert noisy(6, 100) == noisy(1, 25) == 5.0


@pytest.fixture
def measured(monkeypatch):
    """Times by rule, and what was measured."""
    asked = []

    def rule(detectors, *_):
        asked.append(list(detectors))
        times = {
            name: each.config.decoder_layers + each.config.num_queries / 10 + each.preprocessing.size[0] / 100
            for name, each in detectors.items()
        }
        first = next(iter(times.values()))
        ratios = ("speedup", "speedup_low", "speedup_high")
        return {name: {"latency_ms": time} | dict.fromkeys(ratios, first / time) for name, time in times.items()}

    monkeypatch.setattr(module, "measured", rule)
    monkeypatch.setattr("leandetr.trimming.latency.measured", rule)
    return asked


def test_where_nothing_can_leave_the_untrimmed_detector_is_chosen_as_it_was_measured(measured):
    full, less = Point(3, 10, (64, 64), 0.5, 10.0, True), Point(2, 10, (64, 64), 0.1, 5.0)
    found = module._chosen("whole", {point.key: point for point in (full, less)}, full, TrimGoal(max_ap_drop=0.01), None)
    assert found == (full, "whole", {"speedup": 1.0, "speedup_low": 1.0, "speedup_high": 1.0})
    assert not measured


@pytest.mark.slow
def test_a_trimmed_detector_is_one_like_any_other(measured, run, tmp_path):
    data = write_shapes(tmp_path / "data", 8, 2, (64, 64))
    overrides = {"decoder_layers": 3, "num_queries": 12, "decoder_ffn_dim": 64, "d_model": 64}
    detector = create("adamixer", class_map_of(find_split(data, "train")), (64, 64), "test_resnet", overrides=overrides)
    detector.save(tmp_path / "whole")
    out = tmp_path / "out"
    status, text, errors = run("trim", tmp_path / "whole", "--data", data, "--out", out, "--target-latency-ms", 3.5)
    assert status == 0, errors
    found = json.loads((out / "frontier.json").read_text())
    chosen, full = found["chosen"], found["full"]
    assert chosen["latency_ms"] <= 3.5 < full["latency_ms"] == pytest.approx(3 + 1.2 + 0.64)
    assert len(found["points"]) == 3 * 5 * 5
    assert found["images"] == 2  # of val
    assert found["judged_on"].endswith("instances_val.json")
    assert "chosen" in text
    trimmed = load(out)
    assert trimmed.config.decoder_layers == chosen["layers"]
    assert trimmed.config.num_queries == chosen["queries"]
    assert list(trimmed.preprocessing.size) == chosen["size"]
    with Image.open(out / "frontier.png") as picture:
        assert min(picture.size) > 300
    assert run("analyze", "frontier", out / "frontier.json", "--out", tmp_path / "drawn")[0] == 0
    assert (tmp_path / "drawn/frontier.png").read_bytes() == (out / "frontier.png").read_bytes()
    assert run("quantize", out, "--scheme", "weight-only", "--out", tmp_path / "small")[0] == 0
    assert run("export", tmp_path / "small", "--out", tmp_path / "small.onnx")[0] == 0
    assert run("predict", tmp_path / "small.onnx", data / "val", "--out", tmp_path / "seen")[0] == 0

    status, _, said = run("trim", tmp_path / "small", "--data", data, "--out", tmp_path / "none")
    assert status == 2
    assert "is quantized already; trim the float detector" in said
    assert not (tmp_path / "none").exists()


def test_a_json_that_is_no_frontier(run, tmp_path):
    (tmp_path / "other.json").write_text("{}")
    status, _, said = run("analyze", "frontier", tmp_path / "other.json", "--out", tmp_path / "out")
    assert status == 2
    assert "is no frontier; name the frontier.json" in said
