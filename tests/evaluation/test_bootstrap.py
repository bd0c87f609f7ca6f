"""The APs of drawn photographs are faster-coco-eval's on data sets that hold each photograph as often as it was drawn."""

import numpy as np
import pytest

from leandetr.evaluation.bootstrap import bootstrap, interval, weighted_ap
from leandetr.evaluation.coco import evaluate_results

IMAGES, CLASSES = 12, 3


@pytest.fixture
def world():
    """Boxes, some of crowds, and detections that hit, miss and double them; the last image is empty."""
    random = np.random.default_rng(5)
    images = [{"id": 10 * number} for number in range(IMAGES)]
    annotations, results = [], []
    for image in images[:-1]:
        for _object in range(random.integers(1, 5)):
            x, y, width, height = random.uniform([0, 0, 10, 10], [50, 50, 60, 60])
            category = int(random.integers(CLASSES))
            crowd = int(random.random() < 0.15)
            truth = {"image_id": image["id"], "category_id": category, "bbox": [x, y, width, height], "iscrowd": crowd}
            annotations.append({**truth, "id": len(annotations) + 1, "area": width * height})
            for _ in range(random.integers(0, 3)):
                box = (np.array([x, y, width, height]) + random.normal(0, 5, 4)).tolist()
                own = category if random.random() < 0.8 else int(random.integers(CLASSES))
                results.append({"image_id": image["id"], "category_id": own, "bbox": box, "score": float(random.random())})
    categories = [{"id": number, "name": str(number)} for number in range(CLASSES)]
    return {"images": images, "annotations": annotations, "categories": categories}, results


def drawn(truth, results, counts):
    """The data set that holds image i counts[i] times, under new ids."""
    images, annotations, found = [], [], []
    for image, count in zip(truth["images"], counts, strict=True):
        for _ in range(count):
            number = len(images) + 1
            images.append({"id": number})
            annotations += [{**a, "image_id": number} for a in truth["annotations"] if a["image_id"] == image["id"]]
            found += [{**r, "image_id": number} for r in results if r["image_id"] == image["id"]]
    annotations = [{**entry, "id": number} for number, entry in enumerate(annotations, start=1)]
    return {**truth, "images": images, "annotations": annotations}, found


def test_a_draw_is_the_data_set_that_holds_what_was_drawn(world):
    truth, results = world
    counts = np.vstack([np.ones(IMAGES, int), np.random.default_rng(1).multinomial(IMAGES, [1 / IMAGES] * IMAGES, size=8)])
    expected = [evaluate_results(*drawn(truth, results, row)).ap for row in counts]
    assert weighted_ap(truth, results, counts) == pytest.approx(expected, abs=1e-9)
    assert len(set(expected)) > 5


def test_draws_are_the_same_for_every_detector_and_without_objects_undefined(world):
    truth, results = world
    assert bootstrap(truth, results, 20) == bootstrap(truth, results, 20)
    assert set(bootstrap({**truth, "annotations": []}, results, 3)) == {-1.0}
    assert set(bootstrap(truth, [], 3)) == {0.0}


def test_an_interval_is_of_paired_differences():
    low, high = interval([[0.3, 0.5, 0.4], [0.4, 0.6, 0.5]], [[0.2, 0.4, 0.3], [0.2, 0.4, 0.3]])
    assert (low, high) == pytest.approx((0.15, 0.15))  # however much the draws themselves differ
    assert interval([], []) is None
    assert interval([[0.1, -1.0]], [[0.1, 0.2]]) is None
