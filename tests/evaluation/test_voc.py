"""VOC's average precision against its definition, one detection at a time."""

import random

import pytest

from leandetr.evaluation.voc import mean_ap, voc_ap, voc_metrics


def overlap(a, b):
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def plain(truth, results, category, iou=0.5):
    """Every object found adds the highest precision at its rank or a later one, divided by the number of objects."""
    objects = [entry for entry in truth["annotations"] if entry["category_id"] == category]
    ranked = sorted((row for row in results if row["category_id"] == category), key=lambda row: -row["score"])
    found, hits = set(), []
    for row in ranked:
        here = [entry for entry in objects if entry["image_id"] == row["image_id"]]
        best = max(here, key=lambda entry: overlap(row["bbox"], entry["bbox"]), default=None)
        if best is None or overlap(row["bbox"], best["bbox"]) < iou:
            hits.append(0)
        elif not best.get("iscrowd"):
            hits.append(int(best["id"] not in found))
            found.add(best["id"])
    precisions = [sum(hits[: rank + 1]) / (rank + 1) for rank in range(len(hits))]
    counted = [entry for entry in objects if not entry.get("iscrowd")]
    if not counted:
        return -1.0
    return sum(max(precisions[rank:]) for rank, hit in enumerate(hits) if hit) / len(counted)


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_definition(seed):
    draw = random.Random(seed)

    def box():
        return [draw.uniform(0, 60), draw.uniform(0, 60), draw.uniform(10, 40), draw.uniform(10, 40)]

    categories = [{"id": index, "name": f"class {index}"} for index in (2, 5, 6)]
    truth = {"categories": categories, "annotations": []}
    for number in range(60):
        entry = {"id": number, "image_id": draw.randrange(8), "category_id": draw.choice([2, 5]), "bbox": box()}
        truth["annotations"].append(entry | {"iscrowd": int(draw.random() < 0.1)})
    results = [
        {
            "image_id": entry["image_id"],
            "category_id": entry["category_id"],
            "bbox": [v + draw.gauss(0, 3) for v in entry["bbox"]],
        }
        for entry in draw.choices(truth["annotations"], k=120)
    ] + [{"image_id": draw.randrange(10), "category_id": draw.choice([2, 5, 6]), "bbox": box()} for _ in range(60)]
    results = [row | {"score": draw.random()} for row in results]
    found = voc_ap(truth, results)
    assert found == pytest.approx({entry["name"]: plain(truth, results, entry["id"]) for entry in categories})
    assert found["class 6"] == -1.0
    assert 0.2 < mean_ap(found) < 0.95


def test_nothing_found_and_nothing_to_find():
    truth = {
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]}],
    }
    assert voc_ap(truth, []) == {"cat": 0.0}
    assert voc_metrics(truth, []) == {"ap50": 0.0, "per_class": {"cat": 0.0}}
    assert mean_ap(voc_ap(truth | {"annotations": []}, [])) == -1.0
