"""What a measurement promises: the real ratio with an interval around it, turns for everyone, and where it was made."""

import json
import random
import time
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from leandetr.data.coco import Split
from leandetr.data.transforms import eval_transform
from leandetr.deployment.benchmark import PHOTOGRAPHS, WARM_UP, environment, measure
from leandetr.structures import ClassMap, Preprocessing


@pytest.fixture
def split(tmp_path):
    images = []
    for number in range(PHOTOGRAPHS + 2):
        Image.new("RGB", (40 + number, 30)).save(tmp_path / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 30, "width": 40 + number})
    truth = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    return Split(tmp_path / "truth.json", tmp_path)


class Pretended:
    """A runtime that moves the clock by a known time, give or take a tenth, and remembers when it was called, with what."""

    preprocessing, class_map = Preprocessing(size=None, shortest_edge=16, longest_edge=64), ClassMap(("cat",), (1,))
    size_bytes, parameters, theoretical_speedup, unpacked, unpack_seconds = 12, 3, None, 0, 0.0
    device = torch.device("cpu")
    metadata = SimpleNamespace(scheme=None)
    transform = eval_transform(preprocessing)

    def __init__(self, model, seconds, clock, calls, name="engine"):
        self.name, self.artifact, self.seconds, self.clock, self.calls = name, f"{model}.onnx", seconds, clock, calls

    def __call__(self, batch):
        self.calls.append((self.artifact, tuple(batch["pixel_values"].shape)))
        self.clock[0] += self.seconds * random.uniform(0.9, 1.1)


@pytest.fixture
def clock(monkeypatch):
    random.seed(0)
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_ratios_are_those_of_the_times(split, clock):
    runtimes = [Pretended(name, seconds, clock, []) for name, seconds in (("slow", 4e-3), ("fast", 1e-3), ("slower", 6e-3))]
    slow, fast, slower = measure(runtimes, split, repeats=30, against=[0, 0, 1])
    assert (slow["speedup"], slow["speedup_low"], slow["speedup_high"]) == (1, 1, 1)
    assert fast["speedup"] == pytest.approx(4, rel=0.05)
    assert slower["speedup"] == pytest.approx(1 / 6, rel=0.05)
    for row in (slow, fast, slower):
        assert row["speedup_low"] <= row["speedup"] <= row["speedup_high"]
        assert row["latency_ms"] <= row["latency_p90_ms"]
    assert fast["latency_ms"] == pytest.approx(1, rel=0.05)
    assert fast["latency_p90_ms"] == pytest.approx(1.08, abs=0.02)
    assert fast["reference"] == "float"
    assert (fast["artifact"], fast["runtime"], fast["size_bytes"], fast["parameters"]) == ("fast.onnx", "engine", 12, 3)


def test_there_is_no_ratio_between_two_engines_unless_asked_for(split, clock):
    runtimes = [Pretended(name, 1e-3, clock, [], engine) for name, engine in (("a", "pytorch"), ("b", "onnxruntime"))]
    assert measure(runtimes, split, repeats=5, against=[0, 0])[1]["speedup"] > 0
    first, second = measure(runtimes, split, repeats=5)
    assert first["speedup"] == 1
    assert second["latency_ms"] > 0
    assert {second[key] for key in ("speedup", "speedup_low", "speedup_high", "reference")} == {None}


def test_a_batch_has_that_many_photographs_and_its_own_throughput(split, clock):
    calls = []
    (row,) = measure([Pretended("a", 4e-3, clock, calls)], split, repeats=30, batch=32)
    assert {shape[0] for _, shape in calls} == {32}
    assert (row["batch"], row["device"]) == (32, "cpu")
    assert row["latency_ms"] == pytest.approx(4, rel=0.05)
    assert row["images_per_second"] == pytest.approx(8000, rel=0.05)


def test_everyone_has_a_turn_in_every_round_on_the_same_photograph(split, clock):
    calls = []
    measure([Pretended(model, 1e-3, clock, calls) for model in "abc"], split, repeats=12)
    rounds = [calls[start : start + 3] for start in range(0, len(calls), 3)]
    assert len(rounds) == WARM_UP + 12
    assert all({artifact for artifact, _ in turn} == {"a.onnx", "b.onnx", "c.onnx"} for turn in rounds)
    assert all(len({shape for _, shape in turn}) == 1 for turn in rounds)
    assert len({tuple(artifact for artifact, _ in turn) for turn in rounds}) > 1
    warm = {shape for turn in rounds[:WARM_UP] for _, shape in turn}
    assert warm == {shape for turn in rounds for _, shape in turn}
    assert len(warm) > 4
    assert {shape[0] for shape in warm} == {1}


def test_equal_runtimes_have_an_interval_around_one(split, clock):
    _, row = measure([Pretended(name, 1e-3, clock, []) for name in "ab"], split, repeats=40)
    assert row["speedup_low"] < 1 < row["speedup_high"]
    assert row["speedup_high"] - row["speedup_low"] < 0.2


def test_the_environment_says_where():
    found = environment()
    assert found["threads"] == torch.get_num_threads()
    assert torch.__version__.startswith(found["torch"])
    assert found["processor"]
    assert json.loads(json.dumps(found)) == found
