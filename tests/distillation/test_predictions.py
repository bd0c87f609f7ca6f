"""Detections, from a file or a live detector, teach as a DETR's would, in the view that the student sees, and only where they
suffice."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from leandetr.boxes import to_corners
from leandetr.data.batches import collate
from leandetr.data.coco import CocoDataset, Split
from leandetr.data.transforms import AUGMENTATIONS, train_transform
from leandetr.detectors.teachers import TorchvisionDetector
from leandetr.distillation import DetectionTeacher, Distiller, Predictions, build_terms
from leandetr.errors import UserError
from leandetr.structures import ClassMap, Preprocessing


def entry(image_id=1, category_id=3, bbox=(10, 5, 20, 10), score=0.9):
    return {"image_id": image_id, "category_id": category_id, "bbox": list(bbox), "score": score}


@pytest.fixture
def read(tmp_path, classes):
    def write(entries):
        file = tmp_path / "predictions.json"
        file.write_text(json.dumps(entries))
        return Predictions(file, classes)

    return write


@pytest.fixture
def split(tmp_path, classes):
    """Two images of 100 x 50; the first has one object."""
    images = [{"id": n, "file_name": f"{n}.png", "width": 100, "height": 50} for n in (1, 2)]
    for image in images:
        Image.fromarray(np.full((50, 100, 3), 90, dtype=np.uint8)).save(tmp_path / image["file_name"])
    categories = [{"id": i, "name": name} for i, name in zip(classes.dataset_ids, classes.names)]
    annotations = [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [10, 5, 20, 10]}]
    file = tmp_path / "annotations.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return Split(file, tmp_path)


def test_detections_are_ranked_in_the_students_classes_and_in_corners(read):
    found = read([entry(score=0.2), entry(category_id=90, bbox=(0, 1, 2, 3)), entry(category_id=1000), entry(2)]).detections
    assert set(found) == {1, 2}
    assert found[1].labels.tolist() == [4, 1]
    assert found[1].scores.tolist() == pytest.approx([0.9, 0.2])
    assert found[1].boxes.tolist() == [[0, 1, 2, 4], [10, 5, 30, 15]]


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_detections_pass_through_the_images_view(read, split, augment):
    """A detection that lies on an object lies on it in every view, and is cut away when the object is."""
    taught = read([entry(category_id=9), entry(bbox=(60, 20, 30, 20), score=0.6)]).detections
    dataset = CocoDataset(split, train_transform(Preprocessing(size=(64, 64)), augment), detections=taught)
    seen = 0
    for epoch in range(8):
        dataset.set_epoch(epoch)
        _, target = dataset[0]
        on_object = target["detections"]["class_labels"] == 3
        torch.testing.assert_close(target["detections"]["boxes"][on_object], target["boxes"])
        assert target["detections"]["scores"][on_object].tolist() == pytest.approx([0.9] * len(target["boxes"]))
        assert target["class_labels"].tolist() == [1] * len(target["boxes"])
        seen += int(on_object.sum())
    assert seen


def test_an_image_without_detections_has_none_and_plain_data_no_such_key(read, split):
    transform = train_transform(Preprocessing(size=(64, 64)), "none")
    (_, first), (_, second) = CocoDataset(split, transform, detections=read([entry()]).detections)
    assert [len(target["detections"]["boxes"]) for target in (first, second)] == [1, 0]
    torch.testing.assert_close(to_corners(first["detections"]["boxes"]), torch.tensor([[0.1, 0.1, 0.3, 0.3]]))
    plain = [target for _, target in CocoDataset(split, transform)]
    assert not any("detections" in target for target in plain)
    torch.testing.assert_close(plain[0]["boxes"], first["boxes"])


def test_they_train_the_distillation_queries_as_a_teachers_own_do(tiny_detector, read, split):
    student = tiny_detector("detr", dropout=0.0)
    taught = read([entry(score=0.9), entry(bbox=(60, 20, 30, 20), score=0.4)])
    terms = build_terms("hard-label,orthogonality", student, taught)
    dataset = CocoDataset(split, train_transform(student.preprocessing, "none"), detections=taught.detections)
    batch = collate([dataset[0], dataset[1]])
    distiller = Distiller(student, taught, terms)
    distiller.check([batch])
    result = distiller(**batch)
    result.loss.backward()
    assert student.model.model.query_position_embeddings.weight.grad[12:].abs().sum() > 0
    (term, _), own = terms[0], student(**batch)
    objects = [{name: target[name] for name in ("class_labels", "boxes")} for target in batch["labels"]]
    torch.testing.assert_close(  # the confident detection is the object
        term(own, None, batch), term.criterion(own.distillation.logits, own.distillation.boxes, objects)
    )
    for target in batch["labels"]:
        target["detections"]["scores"] *= 0.5
    with pytest.raises(UserError, match="scores above"):
        distiller.check([batch])


def test_terms_that_need_more_are_refused(tiny_detector, read):
    with pytest.raises(UserError, match=r"the fitnet term needs the teacher's features, and .*predictions\.json gives"):
        build_terms("hard-label,fitnet", tiny_detector("detr"), read([entry()]))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"annotations": []}, "is not a list of detections"),
        ([entry() | {"bbox": [1, 2, 3]}], "detection 0 is not in COCO's results format"),
        ([entry(), {"image_id": 1}], "detection 1 is not in COCO's results format"),
        ([entry(score=float("nan"))], "detection 0 has a bbox or score that is not finite"),
        ([entry(category_id=1000)], "no detection with one of the category ids 1, 3, 7, 9, 90"),
        ([], "no detection with one of"),
    ],
)
def test_bad_files_are_refused(read, entries, message):
    with pytest.raises(UserError, match=message):
        read(entries)


class Finds(torch.nn.Module):
    """A detector in torchvision's manner that finds a star on the left half of every image, and something else on the right."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.transform = SimpleNamespace(min_size=(64,), max_size=128)

    def forward(self, images):
        self.seen = images
        sizes = [image.shape[1:] for image in images]
        return [
            {
                "boxes": torch.tensor([[0.0, 0, w / 2, h], [w / 2, 0, w, h]]),
                "labels": torch.tensor([2, 6]),
                "scores": torch.tensor([0.9, 0.8]),
            }
            for h, w in sizes
        ]


@pytest.fixture
def finder(classes):
    names = ("__background__", "disc", "star", "square", "ring", "cross", "zebra")
    return TorchvisionDetector("finder", Finds(), ClassMap(names, tuple(range(7))))


def test_a_live_detector_sees_the_students_images_and_teaches_its_classes(tiny_detector, finder, labels):
    student = tiny_detector("detr", dropout=0.0)
    images = torch.rand(2, 3, 64, 96)
    mean, std = (torch.tensor(value)[:, None, None] for value in (student.preprocessing.mean, student.preprocessing.std))
    mask = torch.ones(2, 64, 96, dtype=torch.int64)
    mask[1, 32:] = 0
    batch = {"pixel_values": (images - mean) / std * mask[:, None], "pixel_mask": mask, "labels": labels(1, 2)}
    live = DetectionTeacher(finder, student)
    distiller = Distiller(student, live, build_terms("hard-label", student, live))
    distiller.check([batch])
    _, taught = live(batch)
    torch.testing.assert_close(finder.model.seen[0], images[0], atol=1e-6, rtol=0)
    assert [tuple(image.shape) for image in finder.model.seen] == [(3, 64, 96), (3, 32, 96)]
    for target in taught["labels"]:
        found = target["detections"]
        assert (found["class_labels"].tolist(), found["boxes"].tolist()) == ([2], [[0.25, 0.5, 0.5, 1.0]])
    distiller(**batch).loss.backward()
    assert student.model.model.query_position_embeddings.weight.grad[12:].abs().sum() > 0
    assert not any(name == "weight" for name, _ in distiller.named_parameters())
    assert finder.model.weight.grad is None


def test_a_live_detector_must_know_the_students_classes_and_serves_no_other_term(tiny_detector, finder):
    student = tiny_detector("detr")
    with pytest.raises(UserError, match=r"the logits term needs the teacher's .*, and finder gives detections alone"):
        build_terms("logits", student, DetectionTeacher(finder, student))
    stranger = TorchvisionDetector("finder", Finds(), ClassMap(("__background__", "disc"), (0, 1)))
    with pytest.raises(UserError, match="does not know square, star, ring, cross: it has the classes __background__, disc"):
        DetectionTeacher(stranger, student)
