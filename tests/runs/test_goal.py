"""A recipe with a goal: what is chosen, what is tried in which order, that a killed search goes on, and what is said of one
that finds nothing."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from leandetr import verbs
from leandetr.data.coco import class_map_of, find_split
from leandetr.data.halves import halves
from leandetr.data.shapes import write_shapes
from leandetr.deployment.pytorch import PyTorchRuntime
from leandetr.detectors.checkpoints.load import load
from leandetr.detectors.create import create
from leandetr.errors import UserError
from leandetr.files import read_json, write_text
from leandetr.recipe import Goal, parse_recipe, read_recipe
from leandetr.runs import compress, goal_run, search, structures
from leandetr.runs.show import plan_of

TINY = {"d_model": 32, "decoder_layers": 2, "encoder_layers": 1, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "num_queries": 8}


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def milliseconds(detector):
    """A rule in place of a clock: layers, weights and pixels, a third less in integers."""
    config, weights = detector.config, sum(tensor.numel() for tensor in detector.model.state_dict().values())
    quick = 0.66 if getattr(config, "quantization_config", None) is not None else 1.0
    return quick * (config.decoder_layers + weights / 1e5 + detector.preprocessing.size[0] / 64)


def row(detector, first):
    return {
        "artifact": "",
        "latency_ms": milliseconds(detector),
        "latency_p90_ms": milliseconds(detector),
        **dict.fromkeys(("speedup", "speedup_low", "speedup_high"), milliseconds(first) / milliseconds(detector)),
        "size_bytes": 1,
        "parameters": 1,
        "theoretical_speedup": None,
    }


def in_turn(detectors, *_):
    first = next(iter(detectors.values()))
    return {name: row(detector, first) for name, detector in detectors.items()}


@pytest.fixture
def machine(monkeypatch):
    """An exported file is a detector's folder by name, run by PyTorch; latencies are by rule. The names of what is trained."""
    trained, taught = [], verbs.distill

    def opened(path, *_, engine=None):
        detector = load(path.read_text())
        return PyTorchRuntime(detector)

    def distill(data, teaching, student, out, *rest):
        trained.append(out.name)
        return taught(data, teaching, student, out, *rest)

    monkeypatch.setattr(verbs, "export", lambda detector, graph: write_text(graph, str(detector)))
    monkeypatch.setattr(verbs, "distill", distill)
    for module in (search, structures, goal_run):
        monkeypatch.setattr(module, "open_runtime", opened)
    monkeypatch.setattr(
        structures, "measure", lambda runtimes, *_: [row(each.detector, runtimes[0].detector) for each in runtimes]
    )
    for module in ("trimming.trim", "trimming.latency", "pruning.goal"):
        monkeypatch.setattr(f"leandetr.{module}.measured", in_turn)
    return trained


@pytest.fixture
def values(tmp_path):
    """A recipe without its goal, for a tiny untrained detector and eight photographs."""
    data = write_shapes(tmp_path / "data", 4, 8, (64, 64))
    torch.manual_seed(0)
    classes = class_map_of(find_split(data, "train"))
    create("detr", classes, (64, 64), "test_resnet", overrides=TINY).save(tmp_path / "teacher")
    return {
        "data": {"folder": str(data)},
        "teacher": {"checkpoint": str(tmp_path / "teacher")},
        "training": {"max_steps": 1, "batch_size": 2, "workers": 0},
        "gallery": 1,
    }


def recipe(values, **goal):
    return parse_recipe(values | {"goal": goal}, "the recipe")


@pytest.mark.parametrize(
    ("goal", "chosen", "met"),
    [
        ({"max_ap_drop": 0.01}, "b", True),  # the fastest that loses no more
        ({"latency_ms": 5}, "c", True),  # the most accurate in time
        ({"latency_ms": 2}, "d", False),  # nothing is: the fastest
        ({"max_ap_drop": 0.06, "latency_ms": 5}, "c", True),
        ({"max_ap_drop": 0.01, "latency_ms": 5}, "b", False),  # the fastest that keeps the accuracy
        ({"max_ap_drop": 0, "latency_ms": 20}, "a", True),
    ],
)
def test_what_is_chosen(goal, chosen, met):
    tried = {"a": (0.5, 10), "b": (0.495, 6), "c": (0.45, 4), "d": (0.3, 3)}
    points = {name: SimpleNamespace(ap=ap, latency_ms=latency) for name, (ap, latency) in tried.items()}
    point, reached = Goal(**goal).choose(list(points.values()), points["a"])
    assert (point is points[chosen], reached) == (True, met)


def test_halves_share_no_photograph_and_keep_neighbours_together(tmp_path):
    split = find_split(write_shapes(tmp_path, 1, 64, (64, 64)), "val")
    whole = read_json(split.annotations)
    parts = [read_json(half.annotations) for half in halves(split)]
    names = [[image["file_name"] for image in part["images"]] for part in parts]
    assert sorted(names[0] + names[1]) == sorted(image["file_name"] for image in whole["images"])
    ordered = sorted(names[0] + names[1])
    assert names[0][:8] == [*ordered[:4], *ordered[8:12]]
    assert sum(len(part["annotations"]) for part in parts) == len(whole["annotations"])


@pytest.mark.slow
def test_a_loss_alone_is_searched_at_half_the_time_and_the_file_is_there(values, tmp_path, machine):
    """An untrained detector has AP 0, so that everything keeps the accuracy: the search gets ever faster until nothing can."""
    out = tmp_path / "run"
    results = compress(recipe(values, max_ap_drop=0.01, trainings=1), out)
    found = results["goal"]
    names = [one["name"] for one in found["tried"]]
    assert names[:2] == ["teacher", "teacher-int8"]
    assert names[2].startswith("trimmed")
    latencies = {entry["name"]: entry["latency_ms"] for entry in results["rows"]}
    assert latencies[found["chosen"]] == min(latencies.values()) < latencies["teacher"] / 2
    assert machine == []  # what keeps the accuracy untrained is not trained
    assert found["met"]
    assert (out / "chosen.onnx").read_text() == (out / "onnx" / f"{found['chosen']}.onnx").read_text()
    page = (out / "report.html").read_text()
    assert "How the file was found" in page
    assert page.count('class="chosen"') == 2  # the ring, in the wide and the narrow plot
    assert found["sentence"] in (out / "report.md").read_text()


def test_a_search_that_was_killed_goes_on_and_a_finished_one_does_nothing(values, tmp_path, machine, monkeypatch):
    job, out = recipe(values, max_ap_drop=0.01, trainings=0), tmp_path / "run"
    whole = compress(job, tmp_path / "whole")
    quantize, done = verbs.quantize, []

    def killed(model, data, scheme, folder, *rest):
        if folder.name == "trimmed-int8":
            raise Killed
        done.append(folder.name)
        return quantize(model, data, scheme, folder, *rest)

    monkeypatch.setattr(verbs, "quantize", killed)
    with pytest.raises(Killed):
        compress(job, out)
    monkeypatch.setattr(verbs, "quantize", quantize)
    left = plan_of(job, out)
    assert list(left[1].columns[0].cells)[-1] == "trimmed-int8"
    results = compress(job, out)
    assert done == ["teacher-int8"]
    assert [entry["name"] for entry in results["rows"]] == [entry["name"] for entry in whole["rows"]]
    monkeypatch.setattr(verbs, "quantize", killed)
    assert compress(job, out)["rows"] == results["rows"]
    assert plan_of(job, out)[2] == "Everything is done."


def test_a_time_that_nothing_takes_says_so_and_names_the_nearest(values, tmp_path, machine):
    results = compress(recipe(values, latency_ms=0.5), tmp_path / "run")
    found = results["goal"]
    assert not found["met"]
    assert "is not met: the fastest of" in found["sentence"]
    assert any("trimming alone: nothing takes" in sentence for sentence in found["left_out"])
    assert found["ended"] == "nothing was found that takes 0.5 ms"
    assert results["left"] == ""


@pytest.mark.slow
def test_a_structure_is_trained_that_takes_the_time_before_its_training(values, tmp_path, machine, monkeypatch):
    """Where only what was trained finds anything, the goal is met by it, and it is no slower than asked."""

    def ap(name):
        return 0.5 if "trained" in name or name.startswith("teacher") else 0.1

    evaluated = verbs.evaluate_runtime

    def judged(runtime, split):
        metrics, results = evaluated(runtime, split)
        name = Path(runtime.artifact).name
        return SimpleNamespace(ap=ap(name), as_dict=lambda: metrics.as_dict() | {"ap": ap(name)}), results

    monkeypatch.setattr(verbs, "evaluate_runtime", judged)
    opened = lambda path, *_, engine=None: PyTorchRuntime(load(path.read_text()), path.read_text())  # noqa: E731
    monkeypatch.setattr(search, "open_runtime", opened)
    monkeypatch.setattr(goal_run, "open_runtime", opened)
    results = compress(recipe(values, max_ap_drop=0.01, latency_ms=2.0), tmp_path / "run")
    found = results["goal"]
    assert found["met"]
    assert machine
    assert found["chosen"] == f"{machine[-1]}-int8"
    row_of = {entry["name"]: entry for entry in results["rows"]}
    assert row_of[found["chosen"]]["latency_ms"] <= 2.0
    untrained = found["chosen"].replace("-trained", "")
    assert [one["name"] for one in found["tried"]].index(untrained) < len(found["tried"]) - 1
    assert "meets the goal" in found["ended"]


def test_time_that_is_up_leaves_what_was_found(values, tmp_path, machine):
    results = compress(recipe(values, max_ap_drop=0.01), tmp_path / "run", budget_minutes=0)
    assert results["rows"] == []
    assert results["left"].startswith("The search is not over: the next is rehearsal")


@pytest.mark.parametrize(
    ("goal", "sentence"),
    [
        ({}, "the recipe: goal: give max_ap_drop, latency_ms or both"),
        ({"latency_ms": 5, "engine": "openvin"}, "'openvin' is none of onnxruntime, openvino"),
        ({"latency_ms": 0}, "goal.latency_ms"),
        ({"latency": 5}, "unknown key 'goal.latency': did you mean 'goal.latency_ms'"),
    ],
)
def test_a_goal_that_is_none_is_a_sentence(values, goal, sentence):
    with pytest.raises(UserError, match=sentence):
        recipe(values, **goal)


def test_a_quantized_teacher_a_foreign_one_and_side_by_side_are_refused(values, tmp_path, machine):
    verbs.quantize(tmp_path / "teacher", values["data"]["folder"], "weight-only", tmp_path / "int8")
    with pytest.raises(UserError, match="int8 is quantized already; compress the float detector"):
        compress(recipe(values | {"teacher": {"checkpoint": str(tmp_path / "int8")}}, max_ap_drop=0.01), tmp_path / "run")
    foreign = recipe(values | {"teacher": {"checkpoint": "detections.json"}}, max_ap_drop=0.01)
    with pytest.raises(UserError, match=r"detections.json is no detector that can be made smaller"):
        compress(foreign, tmp_path / "run")
    with pytest.raises(UserError, match="--jobs"):
        compress(recipe(values, max_ap_drop=0.01), tmp_path / "run", jobs=2)


def test_a_teacher_of_the_command_line_is_taken_as_the_recipe_takes_its_own(tmp_path, values):
    file = tmp_path / "goal.yaml"
    file.write_text(json.dumps(values | {"goal": {"max_ap_drop": 0.01}}))
    assert not read_recipe(file, teacher=tmp_path / "teacher").teacher.is_trained
    file.write_text(
        json.dumps(values | {"goal": {"max_ap_drop": 0.01}, "teacher": {"checkpoint": "x", "training": {"epochs": 2}}})
    )
    assert read_recipe(file, teacher=tmp_path / "teacher").teacher.is_trained
