"""Packages for Core ML: what stands in them, since nothing here runs them, and that the graph is the detector's."""

import json
import logging

import pytest
import torch
from torchvision.transforms.v2 import functional

import leandetr
from leandetr.deployment.coreml import FromBytes, _drop_sixth_axis
from leandetr.deployment.folding import folded_graph
from leandetr.deployment.metadata import describe
from leandetr.deployment.mobile_export import FORMATS, export_mobile
from leandetr.deployment.pytorch import PlainDetector
from leandetr.errors import UserError
from leandetr.quantization.config import WeightOnly
from leandetr.quantization.quantize import quantize


def most_axes(program):
    values = [node.meta.get("val") for node in program.graph.nodes if node.op == "call_function"]
    return max(value.dim() for value in values if isinstance(value, torch.Tensor))


class Windows(torch.nn.Module):
    """A map cut into windows and put together again, as Swin and LW-DETR do it, and a choice, as Deformable DETR makes it."""

    def forward(self, pixels):
        cut = pixels.view(1, 3, 2, 4, 2, 6).permute(0, 2, 4, 3, 5, 1)
        cut = (cut * 2).transpose(2, -1)[:, :, 1:]
        return cut.flatten(1), cut.select(3, 1) + pixels[:, :1, :1, :1, None]


def test_no_tensor_has_six_axes_and_the_answers_stay():
    model, pixels = Windows(), torch.randn(1, 3, 8, 12)
    graph = folded_graph(model, pixels)
    assert most_axes(graph) == 6
    _drop_sixth_axis(graph)
    others = torch.randn_like(pixels)
    for ours, theirs in zip(graph(others), model(others), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert most_axes(torch.export.export(graph, (pixels,), strict=False)) == 5


def test_a_detector_answers_as_before(build):
    model, pixels = PlainDetector(build("deformable_detr")).eval(), torch.randn(1, 3, 64, 96)
    graph = folded_graph(model, pixels)
    _drop_sixth_axis(graph)
    for ours, theirs in zip(graph(pixels), model(pixels), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert most_axes(torch.export.export(graph, (pixels,), strict=False)) == 5


def test_a_picture_is_normalised_in_the_graph(build):
    preparing = build("conditional_detr").preprocessing
    picture = torch.randint(0, 256, (1, 3, 5, 4), dtype=torch.uint8)
    expected = functional.normalize(picture / 255, list(preparing.mean), list(preparing.std))

    class Same(torch.nn.Module):
        def forward(self, pixels):
            return pixels, pixels.sum()

    torch.testing.assert_close(FromBytes(Same(), preparing)(picture.float())[0], expected)


@pytest.mark.parametrize("half", [False, True])
def test_the_package_takes_a_picture_and_says_what_it_is(build, tmp_path, caplog, half):
    tools = pytest.importorskip("coremltools", reason="needs leandetr[coreml]")
    detector, path = build("conditional_detr"), tmp_path / "student.mlpackage"
    with caplog.at_level(logging.WARNING):
        for _ in range(2):  # the second replaces the first
            export_mobile(detector, path, "coreml", half=half)
    assert f"{path} was written and not run: Core ML is on Apple's devices alone" in caplog.text
    assert list(tmp_path.iterdir()) == [path]
    spec = tools.models.MLModel(str(path), skip_model_load=True).get_spec()
    (image,) = spec.description.input
    height, width = detector.preprocessing.size
    assert (image.name, image.type.imageType.height, image.type.imageType.width) == ("image", height, width)
    assert image.type.imageType.colorSpace == image.type.imageType.RGB
    assert {each.name for each in spec.description.output} == {"logits", "boxes"}
    written = describe(detector, detector.preprocessing, half=half, packages=FORMATS["coreml"].packages)
    assert spec.description.metadata.userDefined["leandetr"] == written.to_json()
    assert json.loads(written.to_json())["half"] is half
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    assert size < (2 if half else 4) * written.parameters + 800_000


def test_what_cannot_be_written_is_a_sentence(build, tmp_path, monkeypatch):
    monkeypatch.setattr("leandetr.deployment.coreml._import_tools", lambda: None)
    detector, path = build("conditional_detr"), tmp_path / "m.mlpackage"
    with pytest.raises(UserError, match=r"m\.onnx: a Core ML package ends in \.mlpackage"):
        export_mobile(detector, tmp_path / "m.onnx", "coreml")
    path.mkdir()
    with pytest.raises(UserError, match=r"m\.mlpackage exists and is no Core ML package; name another one"):
        export_mobile(detector, path, "coreml")
    path.rmdir()
    integers = quantize(detector, WeightOnly())
    with pytest.raises(UserError, match=r"Core ML takes float detectors, and this one is weight-only; export its float one"):
        export_mobile(integers, path, "coreml")
    assert not list(tmp_path.iterdir())


def test_a_package_is_no_detector_to_open(tmp_path):
    with pytest.raises(
        UserError, match=r"student\.mlpackage runs on Apple's devices alone; name the detector it was made from"
    ):
        leandetr.open_runtime(tmp_path / "student.mlpackage")
