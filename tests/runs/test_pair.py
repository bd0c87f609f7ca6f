"""What `compress` promises of a recipe in short form: its six rows, a folder that explains itself, no work done twice, mistakes
said before any work."""

import json
import shutil

import pytest

from leandetr import verbs
from leandetr.data.shapes import write_shapes
from leandetr.detectors.checkpoints.load import load
from leandetr.errors import UserError
from leandetr.recipe import parse_recipe, read_recipe
from leandetr.runs import compress, ledger, steps

ROWS = ["teacher", "baseline", "distilled", "distilled-weight-only", "distilled-dynamic", "distilled-static"]
TINY = {
    "model": "detr",
    "backbone": "test_resnet",
    "set": {
        "d_model": 32,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "num_queries": 8,
    },
    "training": {"max_steps": 2, "batch_size": 4, "workers": 0},
}
RECIPE = {
    "image_size": [64, 64],
    "data": {"shapes": {"train": 8, "val": 6, "size": [64, 64]}},
    "teacher": TINY,
    "student": TINY,
    "benchmark": {"repeats": 5},
    "gallery": 2,
}
WORK = ("train", "distill", "quantize", "export", "evaluate_runtime")


def recipe(**changes):
    return parse_recipe(RECIPE | changes, "the recipe")


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.fixture
def done(monkeypatch):
    """The work that is done from here on, as (verb, what it makes), in order."""
    return watch(monkeypatch)


def watch(monkeypatch):
    calls = []

    def watched(verb, work, made):
        def call(*arguments, **options):
            calls.append((verb, made(*arguments)))
            return work(*arguments, **options)

        return call

    made = {
        "train": lambda data, model, out, *_: out.name,
        "distill": lambda data, teacher, student, out, *_: out.name,
        "quantize": lambda model, data, scheme, out, *_: out.name,
        "export": lambda model, out, *_: out.stem,
        "evaluate_runtime": lambda runtime, split: (
            f"{runtime.artifact.rpartition('/')[2].removesuffix('.onnx')}, {runtime.name}"
        ),
    }
    for verb, name in made.items():
        monkeypatch.setattr(verbs, verb, watched(verb, getattr(verbs, verb), name))
    measure = steps.measure
    monkeypatch.setattr(steps, "measure", watched("benchmark", measure, lambda runtimes, *_: len(runtimes)))
    return calls


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that was killed while it quantized and then started again: its folder, results, and work of the second start."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        quantize = verbs.quantize

        def killed(model, data, scheme, *rest):
            if scheme.name == "dynamic":
                raise Killed
            return quantize(model, data, scheme, *rest)

        patch.setattr(verbs, "quantize", killed)
        with pytest.raises(Killed):
            compress(recipe(), out)
    with pytest.MonkeyPatch.context() as patch:
        calls = watch(patch)
        results = compress(recipe(), out, "leandetr compress tiny.yaml")
    return out, results, calls


@pytest.fixture
def copy(run, tmp_path):
    """A copy of the run's folder that a test may change."""
    return shutil.copytree(run[0], tmp_path / "run")


def test_rows_have_the_promised_names_and_numbers(run):
    out, results, _ = run
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(results))
    assert [row["name"] for row in results["rows"]] == ROWS * 2
    assert [row["runtime"] for row in results["rows"]] == ["pytorch"] * 6 + ["onnxruntime"] * 6
    promised = {"name", "artifact", "runtime", "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"}
    promised |= {"latency_ms", "latency_p90_ms", "speedup", "size_bytes", "parameters"}
    for row in results["rows"]:
        assert promised <= row.keys()
        assert -1 <= row["ap"] <= 1
        assert 0 < row["latency_ms"] <= row["latency_p90_ms"]
        assert row["speedup_low"] <= row["speedup"] <= row["speedup_high"]
        if row["name"] in ("teacher", "baseline", "distilled"):
            assert row["speedup"] == 1
    assert results["environment"]["seeds"] == [0]
    assert results["environment"]["torch"]
    assert results["command"] == "leandetr compress tiny.yaml"


def test_int8_files_are_small_and_every_folder_loads(run):
    out, results, _ = run
    size = {(row["name"], row["runtime"]): row["size_bytes"] for row in results["rows"]}
    for name in ROWS:
        assert size[name, "onnxruntime"] == (out / "onnx" / f"{name}.onnx").stat().st_size
        assert load(out / name).class_map.names == ("disc", "square", "triangle", "star", "ring", "cross")
    for name in ROWS[3:]:
        for runtime in ("pytorch", "onnxruntime"):
            assert size[name, runtime] < size["distilled", runtime]


def test_every_variant_is_measured_against_the_float_student_on_its_own_runtime(run, copy, monkeypatch):
    _, results, _ = run
    told = []
    monkeypatch.setattr(steps, "measure", lambda runtimes, split, repeats, against: told.extend(against) or results["rows"])
    (copy / "benchmark.json").unlink()
    compress(recipe(), copy)
    pairs = [(row["name"], row["runtime"]) for row in results["rows"]]
    expected = [("distilled" if name.startswith("distilled") else name, runtime) for name, runtime in pairs]
    assert [pairs[index] for index in told] == expected


def test_every_row_says_what_it_is_held_against(run):
    _, results, _ = run
    held = {row["name"]: (row["against"], row["float_row"]) for row in results["rows"]}
    quantized = dict.fromkeys(ROWS[3:], ("distilled", "distilled"))
    first = {"teacher": (None, "teacher"), "baseline": ("teacher", "baseline"), "distilled": ("baseline", "distilled")}
    assert held == first | quantized
    by_name = {row["name"]: row for row in results["rows"]}
    for row in results["rows"][1:6]:
        assert row["change"] == pytest.approx(row["ap"] - by_name[row["against"]]["ap"])


def test_the_folder_explains_itself(run):
    out, results, _ = run
    assert [step["name"] for step in results["steps"]] == [
        *("data", "rehearsal"),
        *(step.format(name) for name in ROWS for step in ("{}", "evaluate-{}-pytorch", "onnx-{}", "evaluate-{}-onnxruntime")),
        "benchmark",
    ]
    assert {step["name"]: step["summary"] for step in results["steps"]}["teacher"].startswith("2 steps, ")
    assert read_recipe(out / "recipe.yaml") == recipe()
    for page in ("report.md", "report.html"):
        assert all(name in (out / page).read_text() for name in ROWS)
    assert (out / "images.html").read_text().count("<img") == 2 * (1 + len(ROWS))
    results_of_a_row = json.loads((out / "predictions" / "distilled-static-onnxruntime.json").read_text())
    assert results_of_a_row[0].keys() == {"image_id", "category_id", "bbox", "score"}


def test_what_was_done_before_the_kill_is_not_done_again(run):
    _, _, calls = run
    assert [call for call in calls if call[0] in ("train", "distill", "quantize")] == [
        ("quantize", "distilled-dynamic"),
        ("quantize", "distilled-static"),
    ]


def test_a_finished_run_does_nothing_again(run, copy, done):
    _, results, _ = run
    assert compress(recipe(), copy)["rows"] == results["rows"]
    assert done == []


@pytest.mark.parametrize(
    ("lost", "expected"),
    [
        ("onnx/baseline.onnx", [("export", "baseline")]),
        ("predictions/teacher-pytorch.metrics.json", [("evaluate_runtime", "teacher, pytorch")]),
        ("benchmark.json", [("benchmark", 12)]),
    ],
)
def test_what_was_lost_is_made_again_alone(copy, done, lost, expected):
    (copy / lost).unlink()
    compress(recipe(), copy)
    assert done == expected
    assert (copy / lost).exists()


@pytest.mark.slow
def test_a_changed_variant_concerns_itself_alone(copy, done):
    variants = [{"scheme": "weight-only"}, {"scheme": "static", "options": {"observer": "percentile"}}]
    results = compress(recipe(quantization=variants, benchmark={"repeats": 5, "runtimes": ["onnxruntime"]}), copy)
    assert done == [
        ("quantize", "distilled-static"),
        ("export", "distilled-static"),
        ("evaluate_runtime", "distilled-static, onnxruntime"),
        ("benchmark", 5),
    ]
    assert [row["name"] for row in results["rows"]] == [*ROWS[:4], "distilled-static"]


def test_a_changed_distillation_concerns_the_student_and_what_is_made_of_it(copy, monkeypatch):
    def stop(_, teaching, *__):
        assert teaching.weights == {"logits": 2.0}
        raise Killed

    before = json.loads((copy / "steps" / "distilled.json").read_text())
    monkeypatch.setattr(verbs, "train", stop)
    monkeypatch.setattr(verbs, "distill", stop)
    with pytest.raises(Killed):
        compress(recipe(distillation={"weights": {"logits": 2.0}}), copy)
    assert not (copy / "distilled").exists()  # the old one would be taken for the new one
    assert json.loads((copy / "steps" / "distilled.json").read_text())["made_from"] != before["made_from"]
    assert (copy / "baseline" / "model.safetensors").exists()


def test_a_kill_while_the_old_work_is_removed_leaves_no_note_of_it(copy, monkeypatch):
    monkeypatch.setattr(ledger.shutil, "rmtree", kill)
    with pytest.raises(Killed):
        compress(recipe(seed=1), copy)
    assert not (copy / "steps" / "teacher.json").exists()


def kill(*_, **__):
    raise Killed


def test_a_given_teacher_is_taken_as_it_is(run, tmp_path, done, monkeypatch):
    given = run[0] / "teacher"
    monkeypatch.setattr(verbs, "train", kill)  # the baseline's
    with pytest.raises(Killed):
        compress(recipe(teacher={"checkpoint": str(given)}), tmp_path / "run")
    assert (tmp_path / "run" / "teacher" / "model.safetensors").read_bytes() == (given / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"quantization": [{"scheme": "statik"}]}, "unknown scheme 'statik': did you mean 'static'"),
        ({"quantization": [{"scheme": "static", "options": {"observr": "mse"}}]}, "did you mean 'observer'"),
        ({"benchmark": {"runtimes": ["onnxruntim"]}}, "unknown engine 'onnxruntim': did you mean 'onnxruntime'"),
        ({"student": TINY | {"model": "dtr"}}, "unknown model 'dtr': did you mean 'detr'"),
        ({"student": TINY | {"training": {"augment": "flp"}}}, "unknown augmentation 'flp': did you mean 'flip'"),
    ],
)
def test_names_that_are_wrong_are_said_before_the_folder_is_touched(tmp_path, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        compress(recipe(**changes), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"distillation": {"method": "logit"}}, "unknown distillation method 'logit': did you mean 'logits'"),
        ({"distillation": {"weights": {"boxes": 1}}}, "unknown term of logits 'boxes'"),
        ({"student": TINY | {"set": {"decoder_layer": 2}}}, "model.decoder_layer: .* did you mean model.decoder_layers"),
        ({"student": TINY | {"backbone": "test_resnt"}}, "test_resnt"),
        ({"student": TINY | {"weights": "nowhere.safetensors"}}, "nowhere.safetensors"),
        ({"teacher": {"checkpoint": "./nowhere"}}, "nowhere: no such folder"),
        (
            {"quantization": [{"scheme": "static", "options": {"overrides": {"decodr.*": "float"}}}]},
            "'decodr.*' matches no layer",
        ),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_trained(tmp_path, monkeypatch, changes, sentence):
    for verb in WORK:
        monkeypatch.setattr(verbs, verb, kill)
    data = write_shapes(tmp_path / "data", 1, 1, (64, 64))
    with pytest.raises(UserError, match=sentence) as caught:
        compress(recipe(data={"folder": str(data)}, **changes), tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_a_teacher_of_other_classes_is_refused_before_anything_is_trained(tmp_path, monkeypatch, tiny_detector):
    monkeypatch.setattr(verbs, "train", kill)
    tiny_detector("detr", backbone="test_resnet").save(tmp_path / "teacher")
    with pytest.raises(UserError, match="the teacher does not know triangle"):
        compress(recipe(teacher={"checkpoint": str(tmp_path / "teacher")}), tmp_path / "run")


def test_a_folder_without_data_and_a_folder_of_something_else_are_named(tmp_path):
    with pytest.raises(UserError, match="no-data"):
        compress(recipe(data={"folder": str(tmp_path / "no-data")}), tmp_path / "run")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="mine exists and is not an output of leandetr"):
        compress(recipe(), tmp_path / "mine")
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_fewer_images_than_calibration_asks_for_are_all_taken(run):
    record = load(run[0] / "distilled-static").config.quantization_config
    assert recipe().calibration > 8
    assert record.scheme["calibration_images"] == 8
