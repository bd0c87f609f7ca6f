"""What a study promises: one table of all variants and seeds that grows, no work twice, a budget that is kept, mistakes said
before any work."""

import json
import math
import re
import shutil

import pytest

from leandetr import verbs
from leandetr.data.shapes import write_shapes
from leandetr.errors import UserError
from leandetr.recipe import Recipe, parse_recipe, read_recipe
from leandetr.recipe.rows import planned_rows, teachers_of
from leandetr.runs import compress
from leandetr.runs.ledger import Ledger
from leandetr.runs.run import Run
from leandetr.training import fit as fitting
from leandetr.training.callbacks import ap_by_epoch

TINY = {
    "model": "detr",
    "backbone": "test_resnet",
    "set": {
        "d_model": 32,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "num_queries": 8,
    },
    "training": {"epochs": 2, "batch_size": 4, "workers": 0, "precision": "float32"},
}
STUDY = {
    "image_size": [64, 64],
    "data": {"shapes": {"train": 8, "val": 4, "size": [64, 64]}},
    "teacher": TINY,
    "student": TINY,
    "seeds": [0, 1],
    "epochs": [1, 2],
    "variants": [
        {"name": "alone"},
        {
            "name": "logits",
            "student": {"set": {"d_model": 16}},
            "distillation": {"method": "logits"},
            "quantization": [{"scheme": "weight-only"}],
        },
    ],
}
ROWS = ["teacher", "alone", "logits", "logits-weight-only"]


def parsed(**changes) -> Recipe:
    return parse_recipe(STUDY | changes, "the study")


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def kill_in(monkeypatch, verb, folder):
    """Kill the run when `verb` is to make `folder`; the folders that verbs were to make until then, in order."""
    calls = []
    for name in ("train", "distill", "quantize"):
        real = getattr(verbs, name)

        def watched(*arguments, real=real, name=name, place=2 if name == "train" else 3, **options):
            calls.append(arguments[place].name)
            if (name, arguments[place].name) == (verb, folder):
                raise Killed
            return real(*arguments, **options)

        monkeypatch.setattr(verbs, name, watched)
    return calls


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A study that was killed before the second seed, its table then, and what the second call did."""
    out = tmp_path_factory.mktemp("runs") / "study"
    with pytest.MonkeyPatch.context() as patch:
        first = kill_in(patch, "train", "alone-seed-1")
        with pytest.raises(Killed):
            compress(parsed(), out)
    halfway = json.loads((out / "results.json").read_text())
    with pytest.MonkeyPatch.context() as patch:
        second = kill_in(patch, "", "")
        results = compress(parsed(), out, "leandetr compress study.yaml")
    return out, halfway, results, first, second


def by_name(results):
    return {row["name"]: row for row in results["rows"]}


def test_the_first_seed_of_every_variant_comes_before_the_second_of_any(run):
    _, _, _, first, second = run
    assert first == ["teacher", "alone-seed-0", "logits-seed-0", "logits-weight-only-seed-0", "alone-seed-1"]
    assert second == ["alone-seed-1", "logits-seed-1", "logits-weight-only-seed-1"]


def test_the_table_says_early_what_it_can(run):
    _, halfway, _, _, _ = run
    rows = by_name(halfway)
    assert list(rows) == ROWS
    assert {name: row["seeds"] for name, row in rows.items()} == {name: [0] for name in ROWS}
    assert halfway["left"] == ("3 of 7 results are left, the next is alone with seed 1; the same command goes on.")
    assert all(row["spread"]["ap"] is None for row in rows.values())


def test_means_and_spreads_are_those_of_the_runs(run):
    out, _, results, _, _ = run
    assert results["left"] == ""
    rows = by_name(results)
    assert [row["seeds"] for row in rows.values()] == [[0], [0, 1], [0, 1], [0, 1]]
    for name in ROWS[1:]:
        values = [
            json.loads((out / "predictions" / f"{name}-seed-{seed}-pytorch.metrics.json").read_text())["ap"] for seed in (0, 1)
        ]
        mean = sum(values) / 2
        assert rows[name]["ap"] == pytest.approx(mean)
        assert rows[name]["spread"]["ap"] == pytest.approx(math.sqrt(sum((value - mean) ** 2 for value in values)))
        assert [measured["seed"] for measured in rows[name]["runs"]] == [0, 1]
        assert rows[name]["evaluate_seconds"] > 0
    assert [rows[name]["against"] for name in ROWS] == [None, None, "alone", "logits"]
    assert rows["logits"]["change"] == pytest.approx(rows["logits"]["ap"] - rows["alone"]["ap"])
    assert rows["logits-weight-only"]["size_bytes"] < rows["logits"]["size_bytes"] < rows["alone"]["size_bytes"]


def test_curves_are_the_trainings_own(run):
    out, _, results, _, _ = run
    row = by_name(results)["logits"]
    logs = [ap_by_epoch(out / f"logits-seed-{seed}" / "training") for seed in (0, 1)]
    assert [point["epoch"] for point in row["curve"]] == [1, 2]
    assert [point["ap"] for point in row["curve"]] == pytest.approx([(logs[0][e] + logs[1][e]) / 2 for e in (1, 2)])
    assert row["runs"][1]["ap"] == pytest.approx(max(logs[1].values()), abs=1e-6)  # the best epoch is what is kept


def test_the_folder_explains_itself(run):
    out, _, results, _, _ = run
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(results))
    assert read_recipe(out / "recipe.yaml") == parsed()
    for page in ("report.md", "report.html"):
        text = (out / page).read_text()
        assert all(name in text for name in (*ROWS, "epoch 2", "2 of 2"))
    assert "<svg" in (out / "report.html").read_text()


def test_more_seeds_keep_what_is_there(run, monkeypatch):
    out = run[0]
    calls = kill_in(monkeypatch, "train", "alone-seed-2")
    with pytest.raises(Killed):
        compress(parsed(seeds=[0, 1, 2]), out)
    assert calls == ["alone-seed-2"]


def test_a_spent_budget_starts_nothing_and_says_what_is_left(run, monkeypatch):
    out = run[0]
    calls = kill_in(monkeypatch, "", "")
    changed = [*STUDY["variants"], {"name": "weighted", "distillation": {"method": "logits", "weights": {"logits": 2}}}]
    results = compress(parsed(variants=changed), out, budget_minutes=0)
    assert calls == []
    assert results["left"].startswith("2 of 9 results are left, the next is weighted with seed 0")
    assert by_name(results)["weighted"]["ap"] is None
    assert "not yet" in (out / "report.md").read_text()
    assert by_name(results)["alone"]["seeds"] == [0, 1]


def test_a_step_that_would_not_fit_is_not_started(run, monkeypatch):
    out = run[0]
    monkeypatch.setattr(Ledger, "expected", lambda ledger, kind: 3600.0 if kind == "quantization" else 0.0)
    calls = kill_in(monkeypatch, "", "")
    quantization = [{"scheme": "weight-only"}, {"scheme": "dynamic"}]
    changed = [STUDY["variants"][0], STUDY["variants"][1] | {"quantization": quantization}]
    results = compress(parsed(variants=changed), out, budget_minutes=10)
    assert calls == []
    assert results["left"].startswith("2 of 9 results are left, the next is logits-dynamic with seed 0")


def test_a_training_under_way_stops_at_the_budget_and_goes_on(tmp_path, monkeypatch):
    alone = parsed(variants=[{"name": "alone"}], seeds=[0], student=TINY | {"training": TINY["training"] | {"epochs": 3}})
    whole = compress(alone, tmp_path / "whole")

    class Stop(fitting.StopAt):
        """Time is up after three of six steps, in the middle of the second epoch."""

        def on_step_end(self, args, state, control, **kwargs):
            self.until = -math.inf if state.global_step == 3 else math.inf
            super().on_step_end(args, state, control, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(fitting, "StopAt", Stop)
        results = compress(alone, tmp_path / "pieces")
    assert results["left"] == "1 of 1 results are left, the next is alone with seed 0; the same command goes on."
    seconds = json.loads((tmp_path / "pieces" / "steps" / "alone-seed-0.json").read_text())["seconds"]
    assert seconds > 0
    results = compress(alone, tmp_path / "pieces")
    assert results["left"] == ""
    for field in ("ap", "ap50", "curve"):
        assert results["rows"][0]["runs"][0][field] == whole["rows"][0]["runs"][0][field]
    assert json.loads((tmp_path / "pieces" / "steps" / "alone-seed-0.json").read_text())["seconds"] > seconds


def test_a_training_that_diverges_is_noted_and_the_others_are_done(tmp_path, capsys):
    wild = {"name": "wild", "student": {"training": {"lr": 1e6}}}
    one = parsed(seeds=[0], variants=[wild, {"name": "calm", "distillation": {}}])
    begun = []
    for _ in range(2):
        with pytest.raises(
            UserError, match=r"wild-seed-0: the (loss|gradient) is not a number at step \d+.*; lower .*report\.md"
        ):
            compress(one, tmp_path / "run")
        begun.append([line for line in capsys.readouterr().err.splitlines() if line.endswith("-seed-0")])
    assert begun == [["wild-seed-0", "calm-seed-0"], ["wild-seed-0"]]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert {name: row["seeds"] for name, row in by_name(results).items()} == {"teacher": [0], "wild": [], "calm": [0]}
    assert "1 of 3 results are left, the next is wild with seed 0" in results["left"]
    assert re.search(r"Failed: wild-seed-0: the (loss|gradient) is not a number", (tmp_path / "run" / "report.md").read_text())


def test_a_teacher_of_its_own_is_trained_once_for_all_that_name_it():
    own = {"distillation": {"method": "logits"}, "teacher": {"set": {"d_model": 64}}}
    variants = [{"name": "alone"}, {"name": "a", **own}, {"name": "b", **own}, {"name": "c", "distillation": {}}]
    teachers, of_variant = teachers_of(parsed(variants=variants))
    assert list(teachers) == ["teacher-a", "teacher"]
    assert teachers["teacher-a"].set == TINY["set"] | {"d_model": 64}
    assert of_variant == {"a": "teacher-a", "b": "teacher-a", "c": "teacher"}


def test_a_variant_held_against_itself_is_compared_with_none():
    plans = planned_rows(parsed(variants=[{"name": "a"}, {"name": "b"}, {"name": "c", "against": "c"}]))
    assert [plan.against for plan in plans.values()] == [None, "a", None]


@pytest.mark.slow
def test_a_low_bit_training_has_the_students_schedule_and_the_studys_teacher(tmp_path):
    low_bit = {"scheme": "low-bit", "options": {"calibration_images": 4}, "training": {"lr": 1e-5}}
    rows = [low_bit | {"name": "lsq"}, low_bit | {"name": "both", "distillation": {"method": "drd"}}]
    one = parsed(variants=[{"name": "float", "quantization": rows}], seeds=[3], epochs=[2])
    assert [q.training.lr for q in one.variants[0].quantization] == [1e-5] * 2
    assert [q.training.epochs for q in one.variants[0].quantization] == [2, 2]
    results = compress(one, tmp_path / "run")
    found = by_name(results)
    assert list(found) == ["teacher", "float", "float-lsq", "float-both"]
    assert results["left"] == ""
    assert [point["epoch"] for point in found["float-both"]["curve"]] == [1, 2]
    assert found["float-lsq"]["size_bytes"] < found["float"]["size_bytes"]


def test_what_low_bit_trainings_share_stands_between_the_student_and_the_row():
    rows = [{"scheme": "low-bit", "name": "a", "training": {}}, {"scheme": "low-bit", "name": "b", "training": {"epochs": 5}}]
    one = parsed(variants=[{"name": "float", "quantization": rows}], low_bit={"epochs": 4, "lr": 1e-5})
    assert [(q.training.epochs, q.training.lr) for q in one.variants[0].quantization] == [(4, 1e-5), (5, 1e-5)]


@pytest.mark.parametrize(
    ("variant", "sentence"),
    [
        ({"distillation": {"method": "logit"}}, "unknown distillation method 'logit': did you mean 'logits'"),
        ({"distillation": {"options": {"logits": {"stage": "last"}}}}, "unknown option of the logits term 'stage'"),
        ({"distillation": {"weights": {"boxes": 1}}}, "unknown term of logits 'boxes'"),
        ({"quantization": [{"scheme": "statik"}]}, "unknown scheme 'statik': did you mean 'static'"),
        ({"student": {"model": "dtr"}}, "unknown model 'dtr': did you mean 'detr'"),
        ({"distillation": {}, "teacher": {"model": "dtr"}}, "unknown model 'dtr': did you mean 'detr'"),
    ],
)
def test_names_that_are_wrong_are_said_before_the_folder_is_touched(tmp_path, variant, sentence):
    with pytest.raises(UserError, match=sentence):
        compress(parsed(variants=[{"name": "row"} | variant]), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_fit_is_said_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(verbs, "train", lambda *_, **__: pytest.fail("trained"))
    wrong = [{"name": "alone"}, {"name": "wrong", "student": {"set": {"decoder_layer": 2}}}]
    with pytest.raises(UserError, match=r"did you mean model.decoder_layers"):
        compress(parsed(variants=wrong), tmp_path / "run")


def test_a_step_is_expected_to_take_what_the_longest_of_its_kind_took(run):
    ledger = Ledger(run[0])
    notes = [json.loads(path.read_text()) for path in (run[0] / "steps").glob("evaluate-*.json")]
    assert ledger.expected("evaluation on pytorch") == max(note["seconds"] for note in notes)
    assert ledger.expected("benchmark") is None


def pretraining(folder):
    schedule = {"epochs": 1, "batch_size": 4, "workers": 0, "precision": "float32"}
    return {"folder": str(folder), "image_size": [32, 32], "bits": "4-4-8", "training": schedule}


@pytest.mark.slow
def test_a_backbone_is_pretrained_once_and_all_seeds_start_from_it(tmp_path, monkeypatch):
    shapes = write_shapes(tmp_path / "shapes", 8, 4, (64, 64))
    recipe = parsed(student=TINY | {"pretraining": pretraining(shapes)}, variants=[{"name": "alone"}])
    made, given, pretrain, train = [], [], verbs.pretrain, verbs.train
    monkeypatch.setattr(verbs, "pretrain", lambda *a: made.append(a) or pretrain(*a))
    monkeypatch.setattr(verbs, "train", lambda *a: given.append(a[1].weights) or train(*a))
    compress(recipe, tmp_path / "run")
    weights = list((tmp_path / "run").glob("pretrained-*/backbone.safetensors"))
    assert len(made) == len(weights) == 1
    assert made[0][3] == "4-4-8"
    assert given == [str(weights[0])] * 2
    compress(recipe, tmp_path / "run")
    assert len(made) == 1
    assert len(given) == 2


def test_a_pretraining_that_cannot_be_is_one_sentence(tmp_path):
    recipe = parsed(student=TINY | {"pretraining": pretraining(tmp_path / "none")})
    with pytest.raises(UserError, match=r"pretraining.folder: .*none is no folder; name one of images by class"):
        compress(recipe, tmp_path / "run")
    with pytest.raises(UserError, match="pretraining is of a new detector's backbone"):
        parsed(student={key: TINY[key] for key in ("model", "set", "training")} | {"pretraining": pretraining(tmp_path)})


def test_one_draw_of_validation_images_serves_every_step(tmp_path):
    folder = write_shapes(tmp_path / "shapes", 8, 1, (64, 64))
    shutil.rmtree(folder / "val")
    (folder / "annotations" / "instances_val.json").unlink()
    drawn = {"folder": str(folder), "val_fraction": 0.25, "val_seed": 1}
    variants = [{"name": "alone", "quantization": [{"scheme": "static"}]}]
    study = {"data": drawn, "teacher": None, "seeds": [0], "epochs": [], "calibration": 4, "variants": variants}
    compress(parsed(**study), tmp_path / "out")
    split = json.loads((tmp_path / "out" / "alone-seed-0" / "split.json").read_text())
    assert (split["seed"], len(split["train"]), len(split["val"])) == (1, 6, 2)
    known = json.loads((folder / "annotations" / "instances_train.json").read_text())["images"]
    names = {image["id"]: image["file_name"] for image in known}
    for row in ("alone", "alone-static"):
        found = json.loads((tmp_path / "out" / "predictions" / f"{row}-seed-0-pytorch.json").read_text())
        assert {names[one["image_id"]] for one in found} == set(split["val"])
    for seed, done in ((1, True), (2, False)):
        again = read_recipe(tmp_path / "out" / "recipe.yaml", {"data.val_seed": seed})
        assert {step.done for step in Run(again, tmp_path / "out").planned() if step.name.startswith("alone")} == {done}
