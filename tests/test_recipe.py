"""What a recipe promises: what the file says, changed by name, and one sentence for what is not understood."""

from pathlib import Path

import pytest
import yaml

from leandetr.detectors.spec import NewDetector
from leandetr.errors import UserError
from leandetr.recipe import parse_training, read_recipe
from leandetr.training.config import Training

GOOD = {
    "data": {"shapes": {"train": 10, "val": 5}},
    "image_size": [64, 64],
    "teacher": {"model": "detr", "training": {"epochs": 3}},
    "student": {"model": "detr", "set": {"decoder_layers": 2}},
}


@pytest.fixture
def recipe(tmp_path):
    def write(values):
        path = tmp_path / "recipe.yaml"
        path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
        return path

    return write


def test_what_the_file_says(recipe):
    found = read_recipe(recipe(GOOD))
    assert found.teacher.training.epochs == 3
    assert found.student.set == {"decoder_layers": 2}
    assert found.image_size == (64, 64)
    alone, taught = found.compared()
    assert (alone.name, alone.distillation, alone.against) == ("baseline", None, "teacher")
    assert (taught.name, taught.distillation.method) == ("distilled", "logits")
    assert [quantization.scheme for quantization in taught.quantization] == ["weight-only", "dynamic", "static"]
    assert taught.student == alone.student == found.student


def test_a_cached_teacher_needs_views_that_come_again(recipe):
    with pytest.raises(UserError, match=r"distillation\.cache: .* set student\.training\.views"):
        read_recipe(recipe(GOOD), {"distillation.cache": "answers"})
    for key, value in {"views": 4, "augment": "none"}.items():
        found = read_recipe(recipe(GOOD), {"distillation.cache": "answers", f"student.training.{key}": value})
        assert found.distillation.cache == Path("answers")


def test_changes_by_name_win(recipe):
    changes = {"student.training.epochs": 7, "student.set.decoder_layers": 1, "distillation.weights.boxes": 2.0, "seed": 3}
    found = read_recipe(recipe(GOOD), changes)
    assert found.student.training.epochs == 7
    assert found.student.set == {"decoder_layers": 1}
    assert found.distillation.weights == {"boxes": 2.0}
    assert found.seed == 3


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"sede": 1}, "unknown key 'sede': did you mean 'seed'"),
        ({"student.training.epoch": 1}, r"unknown key 'student.training.epoch': did you mean 'student.training.epochs'"),
        ({"data.shapes.trian": 1}, r"unknown key 'data.shapes.trian': did you mean 'data.shapes.train'"),
        ({"quantization": [{"scheme": "static", "option": {}}]}, r"unknown key 'quantization.0.option': did you mean"),
        ({"image_size": [64]}, "image_size"),
        ({"image_size": "large"}, "image_size: give height and width, or the shorter side"),
        ({"teacher.training.epochs": 0}, "teacher.training.epochs: input should be greater than or equal to 1"),
        ({"teacher.training.schedule": "linear"}, "teacher.training.schedule: input should be 'cosine' or 'step'"),
        ({"data.folder": "somewhere"}, "data: give either folder or shapes"),
        ({"data.val_fraction": 0.2}, "data: val_fraction: it is of a draw of validation images; give folder too"),
        ({"data": {"folder": "a", "val_group": "b"}}, "data: val_group: .* give val_fraction too"),
        ({"data": {"folder": "a", "val_fraction": 1}}, "data.val_fraction: input should be less than 1"),
        ({"data": {"folder": "a", "val_fractoin": 0.2}}, "unknown key 'data.val_fractoin': did you mean 'data.val_fraction'"),
        ({"teacher.checkpoint": "there"}, "teacher: give either checkpoint or model"),
        ({"student": {"checkpoint": "there"}}, "student: give model"),
        ({"techer": {}, "teacher": {}}, "unknown key 'techer': did you mean 'teacher'"),
        ({"student": {"checkpoint": "there", "set": {"a": 1}, "image_size": [8, 8]}}, "its own set and image_size: leave out"),
        ({"student": {"checkpoint": "there", "weights": "hub", "training": {}}}, "its own weights: leave out"),
        ({"student.training.seed": 1}, "student: training.seed: .* leave it out"),
        ({"quantization": [{"scheme": "low-bit", "training": {"seed": 1}}]}, "quantization.0: training.seed: .* leave it out"),
        ({"student.training.keep_epochs": [51]}, "keep_epochs: there is no epoch 51 of 50"),
        ({"seed": -1}, "seed: input should be greater than or equal to 0"),
        ({"student.training.lr": float("inf")}, "student.training.lr: input should be a finite number"),
        ({"seed.deep": 1}, "seed.deep: seed is a value, not a section"),
        ({"quantization": [{"scheme": "static"}] * 2}, "quantization: two rows are called distilled-static; give them names"),
        ({"seeds": [0, 1]}, "give either seed or seeds"),
    ],
)
def test_what_is_not_understood_is_one_sentence_with_the_key(recipe, change, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        read_recipe(recipe(GOOD | {"seed": 0}), change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: [", "is not YAML"),
        ("- a", "is no recipe"),
        ("", "is no recipe"),
        ("image_size: [64, 64]", "recipe.yaml: data: field required"),
        ("extends: 5", "extends: 5 is no file; name one"),
        ("extends: [5]", r"extends: \[5\] is no file; name one"),
    ],
)
def test_a_file_that_is_no_recipe_is_named(recipe, text, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        read_recipe(recipe(text))
    assert "recipe.yaml" in str(caught.value)


def test_a_recipe_in_another_encoding_is_named(tmp_path):
    (tmp_path / "recipe.yaml").write_bytes("data: {folder: Bär}".encode("latin-1"))
    with pytest.raises(UserError, match=r"recipe.yaml is not text in UTF-8"):
        read_recipe(tmp_path / "recipe.yaml")


def test_a_recipe_that_is_not_there():
    with pytest.raises(UserError, match=r"cannot read the recipe nowhere.yaml: No such file"):
        read_recipe(Path("nowhere.yaml"))


def test_a_schedule_names_its_nearest_key():
    with pytest.raises(UserError, match="--set training: unknown key 'warm': did you mean 'warmup'"):
        parse_training({"warm": 0.1}, "--set training")


def test_both_forms_name_their_folders_by_the_seed_where_there_is_a_list_of_them(recipe):
    assert read_recipe(recipe(GOOD)).folder("distilled", 0) == "distilled"
    assert read_recipe(recipe(GOOD | {"seeds": [0, 1]})).folder("distilled", 1) == "distilled-seed-1"
    assert read_recipe(recipe(STUDY)).folder("alone", 0) == "alone-seed-0"


def test_both_forms_say_the_same_of_a_low_bit_training(recipe):
    rows = [{"scheme": "low-bit", "training": {"lr": 1e-5}}]
    found = read_recipe(recipe(GOOD | {"quantization": rows}), {"student.training.epochs": 7})
    (training,) = (quantization.training for quantization in found.compared()[1].quantization)
    assert (training.epochs, training.lr) == (7, 1e-5)


STUDY = GOOD | {
    "seeds": [0, 1],
    "variants": [
        {"name": "alone"},
        {"name": "small", "student": {"set": {"d_model": 64}}, "distillation": {"method": "logits"}},
    ],
}


def test_a_variant_is_the_student_with_its_changes(recipe):
    found = read_recipe(recipe(STUDY), {"student.training.epochs": 7})
    alone, small = found.variants
    assert alone.student == found.student
    assert small.student.set == {"decoder_layers": 2, "d_model": 64}
    assert small.teacher == found.teacher
    assert (small.student.training.epochs, small.distillation.method) == (7, "logits")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"variants": [{"name": "a"}, {"name": "a"}]}, "variants: two rows are called a"),
        ({"variants": [{"name": "teacher"}]}, "two rows are called teacher"),
        (
            {"variants": [{"name": "a", "quantization": [{"scheme": "static"}]}, {"name": "a-static"}]},
            "two rows are called a-static",
        ),
        ({"variants": [{"name": "a/b"}]}, "variants.0.name"),
        ({"variants": []}, "variants: list should have at least 1 item"),
        ({"variants": [{"name": "a", "distilation": {}}]}, "unknown key 'variants.0.distilation': did you mean"),
        ({"variants": [{"name": "a", "student": {"training": {"epoch": 1}}}]}, "variants.0.student.training.epoch"),
        ({"variants": [{"name": "a", "student": {"model": None, "checkpoint": "x"}, "distillation": {}}]}, "does not learn"),
        ({"teacher": None, "variants": [{"name": "a", "distillation": {}}]}, "distillation needs a teacher"),
        ({"variants": [{"name": "a", "against": "b"}]}, "a is held against b, which is none"),
        ({"seeds": [1, 1]}, "seeds: a seed is there twice"),
        ({"seeds": [0, 2**32]}, "seeds.1: input should be less than 4294967296"),
        ({"epochs": [4], "student.training.epochs": 3}, "epochs: alone is not evaluated after epoch 4"),
        ({"epochs": [2], "student.training.evaluate_every": 3}, "every 3 of 50"),
        ({"seed": 3}, "seed: a recipe with variants has none of its own; give seeds instead"),
        ({"distillation": {}}, "distillation: a recipe with variants has none of its own; give it to the variants"),
    ],
)
def test_what_is_not_understood_of_a_study_is_one_sentence(recipe, change, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        read_recipe(recipe(STUDY), change)
    assert "\n" not in str(caught.value)


def test_a_variant_of_another_model_has_none_of_the_students_configuration_values(recipe):
    other = {"name": "other", "student": {"model": "rt_detr_v2", "set": {"d_model": 64}}}
    found = read_recipe(recipe(STUDY | {"variants": [other]}), {"student.training.epochs": 7})
    assert found.variants[0].student.set == {"d_model": 64}
    assert found.variants[0].student.training.epochs == 7


def test_a_checkpoint_inherits_nothing_of_what_a_new_model_is_built_from(recipe):
    teacher = {"model": "detr", "backbone": "resnet18", "weights": "hub", "set": {"d_model": 64}, "image_size": [96, 96]}
    own = {"name": "own", "teacher": {"model": None, "checkpoint": "there"}, "distillation": {}}
    found = read_recipe(recipe(STUDY | {"teacher": teacher, "variants": [own]})).variants[0].teacher
    assert (found.checkpoint, found.backbone, found.weights, found.set, found.image_size) == ("there", None, None, {}, None)


def test_a_file_stands_over_those_that_it_extends(recipe, tmp_path):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "rows.yaml").write_text("variants: [{name: alone}]\n")
    (tmp_path / "parts" / "scale.yaml").write_text(yaml.safe_dump(GOOD | {"calibration": 3}))
    own = {"extends": ["parts/scale.yaml", "parts/rows.yaml"], "student": {"training": {"epochs": 5}}, "calibration": 4}
    found = read_recipe(recipe(own))
    assert found.variants[0].student.set == {"decoder_layers": 2}
    assert (found.variants[0].student.training.epochs, found.calibration) == (5, 4)


def test_configuration_values_begin_anew_where_a_file_names_another_model(recipe, tmp_path):
    (tmp_path / "scale.yaml").write_text(yaml.safe_dump(GOOD | {"student": GOOD["student"] | {"set": {"num_denoising": 0}}}))
    own = {"extends": "scale.yaml", "student": {"model": "adamixer", "set": {"sampling_groups": 2}}}
    assert read_recipe(recipe(own)).student.set == {"sampling_groups": 2}


def test_a_file_that_extends_itself_or_nothing_is_named(recipe, tmp_path):
    (tmp_path / "other.yaml").write_text("extends: recipe.yaml")
    with pytest.raises(UserError, match=r"recipe.yaml extends itself"):
        read_recipe(recipe(GOOD | {"extends": "other.yaml"}))
    with pytest.raises(UserError, match=r"cannot read the recipe .*nowhere.yaml"):
        read_recipe(recipe(GOOD | {"extends": "nowhere.yaml"}))


def test_a_checkpoint_with_a_schedule_is_trained_further(recipe):
    own = {"model": None, "checkpoint": "there", "image_size": [96, 96], "set": {"decoder_layers": 2}, "queries": 20}
    as_it_is = {"name": "as-it-is", "student": {"model": None, "checkpoint": "there"}}
    further = {"name": "further", "student": own | {"training": {"lr": 0.5}}, "distillation": {}}
    text = STUDY | {"variants": [as_it_is, further]}
    first, second = read_recipe(recipe(text), {"student.training.epochs": 7}).variants
    assert not first.student.is_trained
    assert second.student.is_trained
    assert (second.student.training.epochs, second.student.training.lr, second.student.queries) == (7, 0.5, 20)


def test_notes_of_earlier_versions_agree_where_what_came_later_is_not_used():
    assert not {"queries", "freeze", "layer_decay"} & {*NewDetector(model="detr").model_dump(), *Training().model_dump()}
    assert NewDetector(model="detr", queries=3).model_dump()["queries"] == 3


def test_models_and_data_of_the_command_stand_for_the_recipes(recipe):
    new = {"model": "detr", "backbone": "resnet18", "set": {"d_model": 64}, "training": {"epochs": 7}}
    path = recipe(GOOD | {"teacher": new, "student": new, "data": {"shapes": {}}})
    found = read_recipe(path, {"student.training.lr": 0.5}, data="photos", teacher="there/large", student="rt_detr_v2")
    assert found.data.folder == Path("photos")
    assert found.teacher.checkpoint == "there/large"
    assert (found.teacher.is_trained, found.teacher.training.epochs, found.teacher.set) == (True, 7, {})
    assert (found.student.model, found.student.training.epochs, found.student.training.lr) == ("rt_detr_v2", 7, 0.5)
