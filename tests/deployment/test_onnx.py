"""What an exported file promises: PyTorch's answers for every family and any number of images, silence, and standing alone."""

import logging
import os

import onnx
import onnx_ir
import onnxruntime
import pytest
import torch

from leandetr.deployment import onnx as exporting
from leandetr.deployment.agreement import SureBoxes, agreement, in_words, sure_boxes
from leandetr.deployment.metadata import describe
from leandetr.deployment.onnx import export_onnx
from leandetr.deployment.pytorch import PyTorchRuntime
from leandetr.deployment.runtimes import OnnxRuntime
from leandetr.detectors.reset_classifier import reset_classifier
from leandetr.errors import UserError
from leandetr.heads import Head
from leandetr.structures import ClassMap

FREE = {"size": None, "shortest_edge": 96, "longest_edge": 160}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("conditional_detr", marks=pytest.mark.slow),
        "rt_detr_v2",
        pytest.param("deformable_detr_refine", marks=pytest.mark.slow),
        pytest.param("deformable_detr", marks=pytest.mark.slow),
        pytest.param("rt_detr", marks=pytest.mark.slow),
    ],
)
def test_answers_as_pytorch_does_for_any_number_of_images(artefact, batch, name):
    detector, path = artefact(name)
    for images in (1, 2, 5):
        pixels = batch(images)["pixel_values"]
        ours, theirs = PyTorchRuntime(detector).run(pixels, None), OnnxRuntime(path).run(pixels, None)
        assert agreement(ours, theirs, detector.head, 1e-4)[0] == 1
        assert agreement(ours, (theirs[0] + 0.1, theirs[1]), detector.head, 1e-4)[0] == 0


@pytest.mark.slow
def test_classes_that_a_trained_detector_was_given_answer_as_in_pytorch(build, batch, tmp_path):
    detector = build("rt_detr_v2")
    reset_classifier(detector, ClassMap(("cube", "star", "cone"), (4, 8, 9)))
    runtime = OnnxRuntime(export_onnx(detector, tmp_path / "new.onnx"))
    assert runtime.class_map == detector.class_map
    for images in (1, 3):
        pixels = batch(images)["pixel_values"]
        ours, theirs = PyTorchRuntime(detector).run(pixels, None), runtime.run(pixels, None)
        assert theirs[0].shape[-1] == 3
        assert agreement(ours, theirs, detector.head, 1e-4)[0] == 1


@pytest.mark.slow
def test_any_size_with_a_mask_where_the_aspect_ratio_is_kept(artefact, batch):
    detector, path = artefact("detr", **FREE)
    for images, height, width in ((1, 96, 128), (3, 160, 96)):
        given = batch(images, height, width, padded=True)
        ours = PyTorchRuntime(detector).run(given["pixel_values"], given["pixel_mask"])
        theirs = OnnxRuntime(path).run(given["pixel_values"], given["pixel_mask"])
        assert agreement(ours, theirs, detector.head, 1e-4)[0] == 1
        unmasked = OnnxRuntime(path).run(given["pixel_values"], torch.ones_like(given["pixel_mask"]))
        assert agreement(ours, unmasked, detector.head, 1e-4)[0] < 1


def test_the_file_says_what_it_is_and_holds_little_but_weights(artefact):
    detector, path = artefact("conditional_detr")
    runtime = OnnxRuntime(path)
    assert runtime.metadata == describe(detector, detector.preprocessing)
    assert runtime.class_map == detector.class_map
    assert runtime.metadata.provenance["model_type"] == "conditional_detr"
    graph = onnx.load(path)
    onnx.checker.check_model(graph)
    assert [value.name for value in graph.graph.output] == ["logits", "boxes"]
    assert not any(node.metadata_props or node.doc_string for node in graph.graph.node)
    assert path.stat().st_size < 4 * runtime.parameters + 400_000


def test_a_fixed_size_and_one_image(build, tmp_path, capfd, caplog):
    detector = build("detr", **FREE).train()
    before = dict(os.environ), logging.root.manager.disable
    with caplog.at_level(logging.INFO):
        path = export_onnx(detector, tmp_path / "one.onnx", image_size=(64, 96), dynamic_batch=False)
    assert capfd.readouterr() == ("", "")
    assert (dict(os.environ), logging.root.manager.disable) == before
    assert detector.training
    (pixels,) = onnx.load(path).graph.input
    assert [side.dim_value for side in pixels.type.tensor_type.shape.dim] == [1, 3, 64, 96]
    assert OnnxRuntime(path).preprocessing.size == (64, 96)
    assert [file.name for file in tmp_path.iterdir()] == ["one.onnx"]


def test_what_cannot_be_traced_leaves_no_file_and_the_old_one_alone(build, tmp_path, monkeypatch):
    detector = build("detr")
    forward = detector.model.forward
    monkeypatch.setattr(detector.model, "forward", lambda **given: 1 / (not torch.compiler.is_exporting()) and forward(**given))
    (tmp_path / "old.onnx").write_bytes(b"old")
    with pytest.raises(UserError, match=r"old\.onnx: detr cannot be exported .*division by zero"):
        export_onnx(detector, tmp_path / "old.onnx")
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"old"]


def test_a_size_that_the_family_cannot_take_is_refused_with_the_nearest(build, tmp_path):
    with pytest.raises(
        UserError, match="image size 100 130: rt_detr_v2 needs multiples of 32; the nearest valid size is 96 128"
    ):
        export_onnx(build("rt_detr_v2"), tmp_path / "m.onnx", image_size=(100, 130))


def test_fewer_cells_than_queries_are_a_sentence_before_anything_is_traced(build, tmp_path, capfd):
    """96 x 96 pixels have 12 x 12 + 6 x 6 + 3 x 3 cells, 64 x 96 two thirds of them."""
    cells = "189 queries cannot be chosen among the 126 cells of an image of 64 96; ask for at most 126 queries or an image of"
    with pytest.raises(UserError, match=rf"m\.onnx: {cells} at least 96 160$"):
        export_onnx(build("rt_detr_v2"), tmp_path / "m.onnx", image_size=(64, 96))
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "values"), [("rt_detr_v2", {}), ("detr", FREE)])
def test_axes_have_names_and_take_any_length(artefact, batch, name, values):
    _, path = artefact(name, **values)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    session = onnxruntime.InferenceSession(path)
    free, queries = (["height", "width"], 12) if values else ([96, 96], 189)
    inputs = {"pixel_values": ["batch", 3, *free]} | ({"pixel_mask": ["batch", *free]} if values else {})
    outputs = {"logits": ["batch", queries, 6 if values else 5], "boxes": ["batch", queries, 4]}
    assert {value.name: value.shape for value in session.get_inputs()} == inputs
    assert {value.name: value.shape for value in session.get_outputs()} == outputs
    for images in (1, 3):
        given = batch(images)
        feed = {name: given[name].numpy() for name in inputs}
        logits, boxes = session.run(None, feed)
        assert (logits.shape[0], boxes.shape) == (images, (images, logits.shape[1], 4))


def test_a_file_of_other_weights_is_reported(artefact, build, tmp_path, monkeypatch, caplog):
    _, path = artefact("conditional_detr")
    monkeypatch.setattr(exporting, "_to_onnx", lambda *_: onnx_ir.load(path))
    export_onnx(build("conditional_detr", seed=2), tmp_path / "other.onnx")
    assert "other.onnx: " in caplog.text
    assert "of all queries 0 % agree" in caplog.text


class TestAgreement:
    """Two answers are compared as sets of queries."""

    logits, boxes = torch.randn(2, 9, 4), torch.rand(2, 9, 4)

    def test_order_does_not_matter(self):
        order = torch.randperm(9)
        for head in Head:
            shuffled = self.logits[:, order], self.boxes[:, order]
            assert agreement((self.logits, self.boxes), shuffled, head, 1e-6) == (1.0, 0.0)

    def test_the_worst_image_counts(self):
        moved = self.boxes.clone()
        moved[1, :3] += 0.3
        share, median = agreement((self.logits, self.boxes), (self.logits, moved), Head.SIGMOID, 1e-3)
        assert share == pytest.approx(6 / 9)
        assert median == 0

    def test_what_is_not_a_number_never_agrees(self):
        broken = torch.full_like(self.logits, torch.nan)
        assert agreement((self.logits, self.boxes), (broken, self.boxes), Head.SIGMOID, 1.0)[0] == 0


class TestSureBoxes:
    """Of two answers the boxes that somebody would report, whatever else changes places."""

    logits = torch.tensor([[[3.0, -5.0], [-5.0, 2.0], [-4.0, -5.0], [-5.0, -4.5]]])  # two sure ones
    boxes = torch.tensor([[[0.2, 0.2, 0.1, 0.1], [0.7, 0.6, 0.2, 0.2], [0.5, 0.5, 1.0, 1.0], [0.4, 0.5, 0.9, 1.0]]])

    def test_neither_order_nor_class_nor_what_scores_little_counts(self):
        other = torch.tensor([3, 1, 2, 0])
        theirs = self.logits.flip(-1)[:, other], self.boxes[:, other] + torch.tensor([0.0, 0, 0.1, 0.0])[:, None]
        assert sure_boxes((self.logits, self.boxes), theirs, Head.SIGMOID, 1e-2) == SureBoxes(2, 2)

    def test_a_box_that_moved_is_missed_and_one_box_is_not_found_twice(self):
        moved = self.boxes.clone()
        moved[0, 0, 0] += 0.05
        assert sure_boxes((self.logits, self.boxes), (self.logits, moved), Head.SIGMOID, 1e-2) == SureBoxes(2, 1)
        twice = self.boxes[:, [0, 0, 2, 3]]
        assert sure_boxes((self.logits, twice), (self.logits, self.boxes), Head.SIGMOID, 1e-2) == SureBoxes(2, 1)

    def test_the_sentence_says_what_was_compared(self):
        found = sure_boxes((self.logits, self.boxes), (self.logits, self.boxes), Head.SIGMOID, 1e-2)
        assert in_words(0.2, found, "ONNX Runtime") == (
            "ONNX Runtime finds 2 of the 2 boxes with a score of 0.3 on random images, and of all queries 20 % agree"
        )
        none = sure_boxes((self.logits - 9, self.boxes), (self.logits, self.boxes), Head.SIGMOID, 1e-2)
        assert "no box with a score of 0.3 on random images to look for in OpenVINO's" in in_words(0.2, none, "OpenVINO")
