"""What the evaluation promises: COCO's published numbers, silence, classes by name, and a sentence for every bad detection."""

import copy
import json
import math

import numpy as np
import pytest
import torch

from leandetr.data.coco import CocoDataset, Split
from leandetr.data.transforms import eval_transform
from leandetr.errors import UserError
from leandetr.evaluation import coco
from leandetr.evaluation.coco import evaluate, evaluate_results, predict_dataset
from leandetr.structures import ClassMap, Detections, Preprocessing

CASES = ["cocoapi_fake100", "detectron2_small", "faster_coco_eval_ignore", "faster_coco_eval_basic", "torchmetrics_4img"]
TRUTH = {
    "images": [{"id": 5, "height": 100, "width": 100}, {"id": 9, "height": 100, "width": 100}],
    "categories": [{"id": 3, "name": "cat"}, {"id": 80, "name": "dog"}],
    "annotations": [{"id": 0, "image_id": 5, "category_id": 80, "bbox": [10, 10, 40, 40]}],
}
HIT = {"image_id": 5, "category_id": 80, "bbox": [10, 10, 40, 40], "score": 0.9}


@pytest.fixture(scope="module")
def references(shared):
    folder = shared / "data" / "eval_refs"
    if not folder.is_dir():
        pytest.skip(f"needs the reference cases in {folder}")
    return folder


@pytest.mark.parametrize("name", CASES)
def test_published_numbers(references, name):
    case = json.loads((references / "expected.json").read_text())["cases"][name]
    truth, results = (json.loads((references / case[key]).read_text()) for key in ("gt", "dt"))
    found = list(evaluate_results(truth, results).as_dict().values())
    assert found == pytest.approx(case["pycocotools_here"], abs=1e-9)
    if case["expected"] is not None:
        assert found == pytest.approx(case["expected"], abs=1e-9)


def test_every_reference_case_is_tested(references):
    assert sorted(json.loads((references / "expected.json").read_text())["cases"]) == sorted(CASES)


def test_inputs_are_left_alone_and_nothing_is_printed(capfd):
    truth, results = copy.deepcopy(TRUTH), [dict(HIT)]
    evaluate_results(truth, results)
    assert truth == TRUTH
    assert results == [HIT]
    assert capfd.readouterr() == ("", "")


def test_classes_by_name_and_undefined_numbers():
    metrics = evaluate_results(TRUTH, [HIT])
    assert metrics.ap == pytest.approx(1.0)
    assert metrics.per_class == {"cat": -1.0, "dog": pytest.approx(1.0)}
    assert (metrics.ap_small, metrics.ap_large) == (-1.0, -1.0)  # the one object's box has a medium area
    assert metrics.ap_medium == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("results", "ap"),
    [
        ([], 0.0),
        ([HIT | {"category_id": 3}], 0.0),
        ([HIT | {"bbox": [10, 10, 40, 0]}], 0.0),
        ([HIT, HIT | {"category_id": 12}], 1.0),
    ],
    ids=["nothing found", "another class", "an empty box", "a category the data lacks beside a hit"],
)
def test_detections_of_every_kind(results, ap):
    assert evaluate_results(TRUTH, results).ap == pytest.approx(ap)


def test_nothing_to_find_is_undefined():
    metrics = evaluate_results(TRUTH | {"annotations": []}, [HIT])
    assert set(metrics.as_dict().values()) == {-1.0}
    assert len(metrics.as_dict()) == 12


def test_crowd_boxes_are_neither_found_nor_missed():
    crowd = {"id": 7, "image_id": 9, "category_id": 80, "bbox": [0, 0, 90, 90], "area": 8100, "iscrowd": 1}
    truth = TRUTH | {"annotations": [*TRUTH["annotations"], crowd]}
    inside = HIT | {"image_id": 9, "bbox": [5, 5, 20, 20], "score": 0.99}
    assert evaluate_results(truth, [HIT, inside]).ap == pytest.approx(1.0)
    assert evaluate_results(TRUTH, [HIT, inside]).ap < 0.6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 77}, "image 77"),
        ({"bbox": [1, 2, 3]}, "four finite numbers"),
        ({"bbox": "everywhere"}, "results format"),
        ({"score": math.nan}, "finite score"),
        ({"score": None}, "results format"),
        ({"image_id": [1]}, "results format"),
        ({"category_id": {}}, "results format"),
        ({"category_id": 12}, "they have 12, it has 3, 80"),
    ],
)
def test_bad_detections_are_named(change, message):
    with pytest.raises(UserError, match=message):
        evaluate_results(TRUTH, [HIT | change])


def test_a_missing_key_is_named():
    with pytest.raises(UserError, match=r"detection 1 .*category_id"):
        evaluate_results(TRUTH, [HIT, {"image_id": 5, "bbox": [0, 0, 1, 1], "score": 1.0}])


@pytest.fixture
def photographs(shared):
    """The real photographs with COCO's own gaps between category ids, some of them without boxes."""
    folder = shared / "data" / "coco_tiny_by"
    split = Split(folder / "annotations" / "instances_val.json", folder / "val")
    return CocoDataset(split, eval_transform(Preprocessing(size=(512, 512))))


def oracle(dataset):
    """A `predict` that answers with the ground truth, in pixels of the photograph."""

    def predict(batch):
        answers = []
        for target in batch["labels"]:
            height, width = target["orig_size"].tolist()
            cx, cy, w, h = (target["boxes"] * torch.tensor([width, height, width, height])).unbind(-1)
            boxes = torch.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], -1)
            answers.append(Detections(torch.ones(len(boxes)), target["class_labels"], boxes))
        return answers

    predict.class_map = dataset.class_map
    return predict


def test_the_ground_truth_scores_one_on_real_photographs(photographs):
    seen = []
    metrics, results = evaluate(oracle(photographs), photographs, batch_size=7, progress=lambda *now: seen.append(now))
    assert metrics.ap > 0.99
    assert seen[-1] == (len(photographs), len(photographs))
    assert {row["category_id"] for row in results} <= set(photographs.class_map.dataset_ids)
    assert json.loads(json.dumps(results)) == results


def test_images_without_detections_count(photographs):
    half = torch.utils.data.Subset(photographs, range(0, len(photographs), 2))
    results = predict_dataset(oracle(photographs), half, photographs.class_map)
    assert 0.1 < evaluate_results(photographs.ground_truth(), results).ap < 0.95


def test_a_model_of_other_classes_is_refused(photographs):
    predict = oracle(photographs)
    predict.class_map = ClassMap(("cat",), (1,))
    with pytest.raises(UserError, match=r"classes \(cat\)"):
        evaluate(predict, photographs)


def test_classes_that_are_evaluated_in_groups_give_the_same_numbers(monkeypatch):
    random = np.random.default_rng(0)
    categories = [{"id": 3 * number + 1, "name": f"class {number}"} for number in range(7)]
    boxes = [(random.uniform(0, 50, 2).tolist(), random.uniform(20, 80, 2).tolist()) for _ in range(60)]
    annotations = [
        {"id": n, "image_id": n % 9, "category_id": categories[n % 6]["id"], "bbox": [*corner, *sides]}  # the last has none
        for n, (corner, sides) in enumerate(boxes)
    ]
    results = [
        {**entry, "bbox": (np.array(entry["bbox"]) + random.normal(0, 4, 4)).tolist(), "score": score}
        for entry in annotations
        for score in random.uniform(0, 1, 2).tolist()
    ]
    truth = {"images": [{"id": n} for n in range(9)], "annotations": annotations, "categories": categories}
    whole = evaluate_results(truth, results)
    assert 0.1 < whole.ap < 0.9
    for pairs in (1, 20, 45):  # of a class and an image
        monkeypatch.setattr(coco, "PAIRS", pairs)
        assert evaluate_results(truth, results) == whole
