"""Variants side by side: the same table as one after the other, resumable, and what goes wrong in a lane is said."""

import json
import math

import pytest

from leandetr import verbs
from leandetr.errors import UserError
from leandetr.recipe import parse_recipe
from leandetr.runs import compress, lanes
from leandetr.runs.run import Run
from leandetr.runs.show import plan_of, resolved

TINY = {
    "model": "detr",
    "backbone": "test_resnet",
    "set": {
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
        "num_queries": 4,
    },
    "training": {"epochs": 1, "batch_size": 4, "workers": 0, "precision": "float32"},
}
RECIPE = {
    "image_size": [64, 64],
    "data": {"shapes": {"train": 4, "val": 2, "size": [64, 64]}},
    "teacher": TINY,
    "student": TINY,
    "variants": [{"name": "alone"}, {"name": "taught", "distillation": {}, "quantization": [{"scheme": "weight-only"}]}],
    "gallery": 1,
}
WILD = {"name": "wild", "student": {"training": {"lr": 1e6, "epochs": 4}}}


def parsed(**changes):
    return parse_recipe(RECIPE | changes, "the recipe")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The results of the same recipe done in order and in two lanes, one of whose trainings diverges."""
    folder = tmp_path_factory.mktemp("lanes")
    in_order, trained, train = compress(parsed(), folder / "in-order"), [], verbs.train
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verbs, "train", lambda *given: trained.append(given[2].name) or train(*given))
        with pytest.raises(UserError, match=r"wild-seed-0: .*the other rows are in") as caught:
            compress(parsed(variants=[*RECIPE["variants"], WILD]), folder / "lanes", jobs=2)
    assert trained == ["teacher"]  # here; the variants, what diverges among them, in their lanes alone
    return folder, in_order, str(caught.value)


def measured(results):
    fields = ("name", "runtime", "seeds", "ap", "ap50", "change", "against", "float_row", "curve")
    return [{field: row[field] for field in fields} for row in results["rows"] if row["name"] != "wild"]


def test_the_table_is_the_same_and_a_divergence_is_said_of_its_row_alone(both):
    folder, in_order, error = both
    side_by_side = json.loads((folder / "lanes" / "results.json").read_text())
    assert measured(side_by_side) == measured(json.loads(json.dumps(in_order)))
    assert "1 of 5 results are left, the next is wild" in side_by_side["left"]
    assert "taught" not in error
    assert error.count("is not a number at step") == 1
    assert sorted(path.name for path in (folder / "lanes" / "lanes").iterdir()) == ["alone-0.log", "taught-0.log", "wild-0.log"]


def test_a_lane_leaves_the_table_to_the_run(both):
    out = both[0] / "lanes"
    written = (out / "results.json").read_bytes()
    assert Run(parsed(variants=[*RECIPE["variants"], WILD]), out).work_on("alone", 0, math.inf) == {}
    assert (out / "results.json").read_bytes() == written


def test_what_is_done_needs_no_lane(both, monkeypatch):
    monkeypatch.setattr(lanes.subprocess, "Popen", lambda *_, **__: pytest.fail("a lane began"))
    assert compress(parsed(), both[0] / "lanes", jobs=2)["left"] == ""


def test_an_error_in_a_lane_is_one_sentence(both, tmp_path, monkeypatch):
    monkeypatch.setattr(lanes.sys, "executable", "/bin/false")
    changed = [{"name": "other", "student": {"training": {"lr": 1e-5}}}]
    with pytest.raises(UserError, match=r"other with seed 0 ended with status 1; .*other-0.log says why"):
        compress(parsed(variants=changed), both[0] / "lanes", jobs=2)


def test_lanes_take_the_gpus_in_turn_and_share_the_cores(monkeypatch):
    monkeypatch.setattr(lanes.os, "cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(lanes.torch.cuda, "device_count", lambda: 2)
    chosen = [lanes._environment(lane, 3) for lane in range(3)]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in chosen] == ["0", "1", "0"]
    assert {one["OMP_NUM_THREADS"] for one in chosen} == {"2"}
    assert lanes.gpus_of(3) == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert lanes._environment(1, 2)["CUDA_VISIBLE_DEVICES"] == "7"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(lanes.torch.cuda, "device_count", lambda: 0)
    assert "CUDA_VISIBLE_DEVICES" not in lanes._environment(0, 2)


def test_a_plan_says_what_is_done_and_what_the_rest_will_take_and_touches_nothing(both, tmp_path):
    folder = both[0]
    before = {path: path.stat().st_mtime_ns for path in (folder / "in-order").rglob("*")}
    more = [*RECIPE["variants"], {"name": "more", "quantization": [{"scheme": "dynamic"}]}]
    rows, steps, left = plan_of(parsed(variants=more), folder / "in-order")
    assert {path: path.stat().st_mtime_ns for path in (folder / "in-order").rglob("*")} == before
    assert list(rows.columns[0].cells) == ["teacher", "alone", "taught", "taught-weight-only", "more", "more-dynamic"]
    assert list(rows.columns[2].cells) == ["–", "–", "alone", "taught", "alone", "more"]
    state = dict(zip(steps.columns[0].cells, steps.columns[1].cells))
    assert (state["taught-seed-0"], state["more-seed-0"], state["more-dynamic-seed-0"]) == ("done", "to do", "to do")
    assert left.startswith("5 of ")
    assert "about " in left
    assert plan_of(parsed(), tmp_path / "new")[2].startswith("10 of 10 steps are left; how long a step takes is not known yet")
    assert list(tmp_path.iterdir()) == []


def test_a_resolved_recipe_says_all_and_is_a_recipe():
    short = {key: value for key, value in RECIPE.items() if key != "variants"}
    said = resolved(parse_recipe(short, "the recipe"))
    assert all(words in said for words in ("name: distilled", "method: logits", "scheme: static", "weight_decay: 0.0001"))
    import yaml

    again = parse_recipe(yaml.safe_load(said), "what was shown")
    assert [variant.name for variant in again.compared()] == ["baseline", "distilled"]
    assert again.compared()[1] == parse_recipe(short, "the recipe").compared()[1]
