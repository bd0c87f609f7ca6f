"""What the Python functions promise: one answer from every engine on real photographs, and files that say what was computed."""

import json

import pytest
import torch
from torchvision.models import get_model

import leandetr
from leandetr import verbs
from leandetr.data.batches import collate
from leandetr.data.coco import CocoDataset, Split, class_map_of, find_split
from leandetr.data.shapes import write_shapes
from leandetr.data.transforms import eval_transform
from leandetr.deployment.runtimes import open_runtime
from leandetr.detectors.create import create
from leandetr.detectors.query_sets import add_distillation_queries
from leandetr.detectors.spec import NewDetector
from leandetr.distillation import Teaching, build_terms
from leandetr.distillation.teacher import DetectorTeacher
from leandetr.errors import UserError
from leandetr.quantization.config import Dynamic, Static, WeightOnly
from leandetr.training.config import Training
from leandetr.verbs.calibration import with_calibration

SMALL = {
    "d_model": 32,
    "decoder_layers": 2,
    "encoder_layers": 1,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "num_queries": 8,
}


@pytest.fixture(scope="module")
def photographs(shared):
    """Real photographs whose category ids have gaps."""
    return shared / "data" / "coco_tiny_by"


@pytest.fixture(scope="module")
def model(photographs, tmp_path_factory):
    """A saved detector of the photographs' classes, with weights that give every query an answer of its own."""
    torch.manual_seed(0)
    classes = class_map_of(find_split(photographs, "val"))
    detector = create("detr", classes, (96, 128), "test_resnet", overrides=SMALL)
    with torch.no_grad():
        for parameter in detector.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    folder = tmp_path_factory.mktemp("models") / "model"
    detector.save(folder)
    return folder


@pytest.fixture(scope="module")
def graph(model):
    """The same detector as .onnx."""
    return verbs.export(model, model.parent / "model.onnx")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("shapes") / "data", 3, 1, (64, 64))


def test_every_engine_finds_the_same_on_a_photograph(photographs, model, graph):
    pytest.importorskip("openvino")
    runtimes = [open_runtime(model), open_runtime(graph), open_runtime(graph, engine="openvino")]
    split = find_split(photographs, "val")
    dataset = CocoDataset(split, eval_transform(runtimes[0].preprocessing), runtimes[0].class_map)
    batch = collate([dataset[0], dataset[1]])
    expected, *others = [runtime(batch) for runtime in runtimes]
    assert len({round(score, 5) for score in expected[0].scores.tolist()}) == 8
    for found in others:
        for mine, theirs in zip(expected, found, strict=True):
            torch.testing.assert_close(theirs.scores, mine.scores, atol=1e-4, rtol=0)
            torch.testing.assert_close(theirs.boxes, mine.boxes, atol=0.1, rtol=0)
            assert torch.equal(theirs.labels, mine.labels)


def test_a_file_of_predictions_has_the_accuracy_of_what_made_it(photographs, graph, tmp_path):
    split = find_split(photographs, "val")
    annotations = json.loads(split.annotations.read_text())
    truth = json.loads(split.annotations.read_text()) | {"images": annotations["images"][:6]}
    kept = {image["id"] for image in truth["images"]}
    truth["annotations"] = [entry for entry in annotations["annotations"] if entry["image_id"] in kept]
    file = tmp_path / "truth.json"
    file.write_text(json.dumps(truth))
    sources = [split.images / image["file_name"] for image in truth["images"]]
    data = {"val": Split(file, split.images)}

    found = verbs.predict(graph, sources, tmp_path / "out", annotations=file)
    assert verbs.evaluate(found, data).as_dict() == verbs.evaluate(graph, data).as_dict()
    assert {entry["category_id"] for entry in json.loads(found.read_text())} <= {c["id"] for c in truth["categories"]}
    assert sorted(path.name for path in (tmp_path / "out").glob("*.jpg")) == sorted(path.name for path in sources)


def test_a_bad_photograph_leaves_no_predictions_and_the_folder_goes_on_being_ours(photographs, model, tmp_path):
    source = min((photographs / "val").glob("*.jpg"))
    whole, bad = tmp_path / "photographs" / "a.jpg", tmp_path / "photographs" / "b.jpg"
    whole.parent.mkdir()
    whole.write_bytes(source.read_bytes())
    bad.write_bytes(source.read_bytes()[:3000])
    with pytest.raises(UserError, match=r"b\.jpg cannot be decoded"):
        verbs.predict(model, [whole, bad], tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["a.jpg", "leandetr.json"]
    bad.write_bytes(source.read_bytes())
    verbs.predict(model, [whole, bad], tmp_path / "out")
    assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())) == 2


def test_a_truncated_file_is_refused(graph, photographs, tmp_path):
    (tmp_path / "half.onnx").write_bytes(graph.read_bytes()[: graph.stat().st_size // 2])
    with pytest.raises(UserError, match=r"half\.onnx is not an ONNX file or is truncated"):
        verbs.evaluate(tmp_path / "half.onnx", photographs)


@pytest.mark.slow
def test_openvino_alone_is_written(model, photographs, tmp_path):
    pytest.importorskip("openvino")
    (tmp_path / "model.onnx").write_text("of another model")
    written = verbs.export(model, tmp_path / "model.xml", to="openvino")
    assert open_runtime(written).class_map == open_runtime(model).class_map
    assert (tmp_path / "model.onnx").read_text() == "of another model"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.bin", "model.onnx", "model.xml"]


@pytest.mark.parametrize(
    ("to", "name", "sentence"),
    [
        ("openvin", "m.xml", "unknown format 'openvin': did you mean 'openvino'"),
        ("openvino", "m.bin", r"ends in \.xml"),
        ("onnx", "m.pt", r"m\.pt: an ONNX file ends in \.onnx; name it so"),
        ("onnx", "m.xml", "add --to openvino"),
    ],
)
def test_exports_that_cannot_be_are_refused_before_any_work(model, tmp_path, monkeypatch, to, name, sentence):
    monkeypatch.setattr(verbs.artefacts, "export_onnx", None)
    with pytest.raises(UserError, match=sentence):
        verbs.export(model, tmp_path / name, to=to)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("scheme", "calibration", "expected"),
    [
        (Static(calibration_images=2), None, 2),
        (Static(), None, 3),  # all there are
        (Static(), 1, 1),
        (Static(overrides={"model.encoder.*": Static(weight_bits=4)}), 2, 2),
        (Dynamic(overrides={"model.encoder.*": "static"}), 2, None),
    ],
)
def test_calibration_takes_what_is_asked_for_or_there(shapes, tmp_path, scheme, calibration, expected):
    torch.manual_seed(0)
    create("detr", class_map_of(find_split(shapes, "train")), (64, 64), "test_resnet", overrides=SMALL).save(tmp_path / "float")
    made = verbs.quantize(tmp_path / "float", shapes, scheme, tmp_path / "int8", calibration)
    record = made.config.quantization_config.scheme
    assert record.get("calibration_images") == expected
    for override in record["overrides"].values():
        assert override["calibration_images"] == 2


def test_more_calibration_images_than_there_are_are_refused(shapes, model, tmp_path):
    with pytest.raises(UserError, match="has 3 images, and calibration asks for 4"):
        verbs.quantize(model, shapes, Static(), tmp_path / "int8", 4)
    assert list(tmp_path.iterdir()) == []


def test_a_detector_that_cannot_answer_its_own_size_is_neither_quantized_nor_trained(shapes, tmp_path):
    classes = class_map_of(find_split(shapes, "train"))
    overrides = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 4}  # norms over groups of one channel
    create("deformable_detr", classes, (64, 64), "test_resnet", overrides=overrides).save(tmp_path / "float")
    with pytest.raises(UserError, match=r"float: the model cannot answer an image of 64 64 .* ask for an image of at least"):
        verbs.quantize(tmp_path / "float", shapes, Static(), tmp_path / "int8", 1)
    assert not (tmp_path / "int8").exists()
    with pytest.raises(UserError, match=r"mine: the model cannot answer an image of 64 64 .* ask for an image of at least"):
        verbs.train(shapes, tmp_path / "float", tmp_path / "mine", Training(max_steps=1, batch_size=1, augment="none"))


def test_an_override_that_reads_no_images_still_reads_none():
    config = Static(overrides={"*fc1": WeightOnly(), "*fc2": Static(calibration_images=9)})
    changed = with_calibration(config, lambda _: 5)
    assert [changed.calibration_images, *(own.calibration_images for own in changed.overrides.values())] == [5, 0, 5]


@pytest.fixture(scope="module")
def two_sets(model, tmp_path_factory):
    """A saved detector with three distillation queries beside its eight object queries."""
    torch.manual_seed(0)
    detector = leandetr.load(model)
    add_distillation_queries(detector.model, 3)
    with torch.no_grad():
        detector.model.model.query_position_embeddings.weight[8:] = torch.randn(3, 32)
    folder = tmp_path_factory.mktemp("models") / "two_sets"
    detector.save(folder)
    return folder


@pytest.mark.slow
def test_the_chosen_queries_answer_in_every_verb(photographs, two_sets, tmp_path):
    split = find_split(photographs, "val")
    photograph = min(split.images.glob("*.jpg"))
    found = {}
    for which, count in {None: 8, "object": 8, "distillation": 3, "both": 11}.items():
        out = tmp_path / str(which)
        answers = json.loads(verbs.predict(two_sets, [photograph], out, threshold=0.0, queries=which).read_text())
        found[which] = [entry["score"] for entry in answers[0]["detections"]]
        runtime = open_runtime(two_sets, queries=which)
        assert runtime.run(torch.zeros(1, 3, 96, 128), None)[0].shape[1] == count
    assert found[None] == found["object"]
    assert sorted(found["object"] + found["distillation"], reverse=True) == pytest.approx(found["both"])
    graph = verbs.export(two_sets, tmp_path / "both.onnx", queries="both")
    pixels = torch.randn(1, 3, 96, 128)
    expected = open_runtime(two_sets, queries="both").run(pixels, None)
    torch.testing.assert_close(open_runtime(graph).run(pixels, None), expected, atol=1e-4, rtol=1e-4)


def test_a_choice_of_queries_where_there_is_none_is_refused(photographs, model, graph, two_sets, tmp_path):
    for verb in (lambda q: verbs.evaluate(model, photographs, queries=q), lambda q: verbs.export(model, graph, queries=q)):
        with pytest.raises(UserError, match="object queries alone"):
            verb("both")
    with pytest.raises(UserError, match=r"model\.onnx offers no choice of queries"):
        verbs.predict(graph, [], tmp_path / "out", queries="both")
    with pytest.raises(UserError, match="unknown set of queries 'bot': did you mean 'both'"):
        verbs.evaluate(two_sets, photographs, queries="bot")
    with pytest.raises(UserError, match=r"found\.json holds detections"):
        verbs.evaluate("found.json", photographs, queries="both")


def test_latencies_are_held_against_the_first(model, graph, photographs):
    first, second = verbs.benchmark([model, graph], photographs, repeats=2)
    assert (first["runtime"], second["runtime"]) == ("pytorch", "onnxruntime")
    assert first["speedup"] == 1
    assert second["speedup"] is None  # on another engine
    assert second["size_bytes"] == graph.stat().st_size


def test_a_cached_teacher_is_asked_once_for_all_trainings(shapes, tmp_path, monkeypatch):
    torch.manual_seed(0)
    create("detr", class_map_of(find_split(shapes, "train")), (64, 64), "test_resnet", overrides=SMALL).save(
        tmp_path / "teacher"
    )
    student = NewDetector(model="detr", image_size=(64, 64), backbone="test_resnet", set=SMALL)
    teaching = Teaching(teacher=tmp_path / "teacher", cache=tmp_path / "cache")
    short = {"max_steps": 2, "batch_size": 2}
    with pytest.raises(UserError, match=r"set training\.views"):
        verbs.distill(shapes, teaching, student, tmp_path / "a", Training(**short))
    assert not (tmp_path / "a").exists()
    verbs.distill(shapes, teaching, student, tmp_path / "a", Training(**short, views=2))
    monkeypatch.setattr(DetectorTeacher, "answer", None)
    verbs.distill(shapes, teaching, student, tmp_path / "b", Training(**short, views=2, seed=1))
    assert (tmp_path / "b" / "config.json").exists()


def test_the_seed_of_a_saved_student_is_that_of_its_adapters_too(shapes, model):
    def adapter():
        student = verbs.fitting.build_student(shapes, NewDetector(checkpoint=model), seed=3)
        teacher = create("detr", student.class_map, (96, 128), "test_resnet", overrides=SMALL | {"d_model": 64})
        (term, _), *_ = build_terms("features", student, teacher)
        return term.levels.adapter.weight

    assert torch.equal(adapter(), adapter())


def test_another_distillation_is_not_taken_for_the_first(shapes, model, tmp_path, monkeypatch):
    def distil(**changes):
        student = NewDetector(model="detr", image_size=(64, 64))
        verbs.distill(shapes, Teaching(teacher="teacher", **changes), student, tmp_path / "out")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(verbs.fitting, "load", killed)
    with pytest.raises(KeyboardInterrupt):
        distil()
    for changes in ({"options": {"logits": {"stages": "last"}}}, {"weights": {"logits": 2.0}}, {"method": "fgd"}):
        with pytest.raises(UserError, match="out holds the result of other settings"):
            distil(**changes)


def test_folders_that_were_finished_before_there_were_specs_are_still_finished(shapes, model, tmp_path):
    building = {"image_size": [64, 64], "backbone": "test_resnet", "weights": None, "overrides": SMALL}
    schedule = Training().model_dump()
    made_from = {
        "train": ["train", str(shapes), "detr", building, schedule],
        "distill": ["distill", str(shapes), "teacher", "detr", "logits", {"logits": 2}, {}, building, schedule],
    }
    for verb, said in made_from.items():
        leandetr.load(model).save(tmp_path / verb)
        (tmp_path / verb / "leandetr.json").write_text(json.dumps({"made_by": "leandetr", "made_from": said}, default=str))
    student = NewDetector(model="detr", image_size=(64, 64), backbone="test_resnet", set=SMALL)
    assert verbs.train(shapes, student, tmp_path / "train").class_map == leandetr.load(model).class_map
    verbs.distill(shapes, Teaching(teacher="teacher", weights={"logits": 2}), student, tmp_path / "distill")


def test_a_detector_of_torchvision_teaches_and_answers_once(shapes, tmp_path):
    """Its detections are the same to a student, to an evaluation and in the file that later trainings can read."""
    torch.manual_seed(0)
    name = "fasterrcnn_mobilenet_v3_large_320_fpn"
    classes = class_map_of(find_split(shapes, "train"))
    names = ["__background__", *classes.names]
    torch.save(get_model(name, weights=None, weights_backbone=None, num_classes=len(names)).state_dict(), tmp_path / "own.pth")
    (tmp_path / "own.json").write_text(json.dumps(names))
    teacher = f"{name}:{tmp_path / 'own.pth'}"
    student = NewDetector(model="detr", image_size=(64, 64), backbone="test_resnet", set=SMALL)
    training = Training(max_steps=1, batch_size=2, augment="none")
    method = {"method": "hard-label", "options": {"hard-label": {"threshold": 0.05}}}
    teaching = Teaching(teacher=teacher, **method)
    assert verbs.distill(shapes, teaching, student, tmp_path / "out", training).config.distillation_queries

    split = find_split(shapes, "train")
    found = verbs.predict(teacher, [split.images], tmp_path / "found", annotations=split.annotations)
    assert verbs.evaluate(found, shapes, "train").as_dict() == verbs.evaluate(teacher, shapes, "train").as_dict()
    assert {entry["category_id"] for entry in json.loads(found.read_text())} <= set(classes.dataset_ids)
    teaching = Teaching(teacher=found, **method)
    assert verbs.distill(shapes, teaching, student, tmp_path / "again", training).config.distillation_queries


def test_a_name_that_is_no_model_has_its_nearest(shapes, tmp_path):
    with pytest.raises(UserError, match="unknown model 'rt_detrv2': did you mean 'rt_detr_v2'"):
        verbs.train(shapes, "rt_detrv2", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_verbs_are_found_at_the_top():
    for verb in ("train", "distill", "quantize", "evaluate", "export", "predict", "benchmark"):
        assert getattr(leandetr, verb) is getattr(verbs, verb)
    assert leandetr.compress.__module__ == "leandetr.runs.run"
