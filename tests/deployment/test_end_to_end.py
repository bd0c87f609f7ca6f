"""An end-to-end file promises what the ordinary path promises: the photograph in, the same detections out, on both engines."""

import pytest
import torch
from torchvision.transforms.v2 import functional as F

from leandetr.data.images import read_image
from leandetr.deployment.end_to_end import resize
from leandetr.deployment.onnx import export_onnx
from leandetr.deployment.predict import predict_sources
from leandetr.deployment.runtimes import open_runtime
from leandetr.errors import UserError
from leandetr.files import read_json


def both_ways(image, size):
    """Ours and torchvision's, of an image (3, H, W) uint8."""
    return resize(image[None].float(), size)[0], F.resize(image, list(size), antialias=True).float()


@pytest.mark.parametrize("source", [(480, 640), (96, 96), (61, 400), (33, 47)])
@pytest.mark.parametrize("target", [(96, 96), (64, 160)])
def test_resizing_is_torchvisions_to_one_grey_level(source, target):
    image = torch.randint(0, 256, (3, *source), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    ours, theirs = both_ways(image, target)
    assert (ours - theirs).abs().max() <= 1
    assert (ours != theirs).float().mean() < 0.02


def test_resizing_real_photographs(shared):
    photographs = sorted((shared / "data/coco_tiny_by/val").glob("*.jpg"))[:8]
    for path in photographs:
        ours, theirs = both_ways(F.to_image(read_image(path)), (192, 192))
        assert (ours - theirs).abs().max() <= 1
        assert (ours != theirs).float().mean() < 0.02


@pytest.fixture(scope="module")
def files(build, tmp_path_factory):
    """The same detector exported to the model's own inputs and outputs, and end to end."""
    folder, detector = tmp_path_factory.mktemp("files"), build("detr", noise=0.12)
    return export_onnx(detector, folder / "plain.onnx"), export_onnx(detector, folder / "whole.onnx", end_to_end=True)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_the_file_answers_as_the_ordinary_path(files, engine, photograph, tmp_path):
    if engine == "openvino":
        pytest.importorskip("openvino")
    sources, found = [photograph("wide.png"), photograph("tall.png", size=(70, 150))], []
    for file in files:
        runtime = open_runtime(file, engine=engine)
        written = predict_sources(runtime, sources, tmp_path / file.stem, threshold=0.0, pictures=False)
        found.append([row["detections"] for row in read_json(written)])
    for ours, theirs in zip(*found, strict=True):
        assert len(ours) == len(theirs) == 12
        nearest = [min(abs(a["score"] - b["score"]) + max(map(gap, a["box"], b["box"])) / 10 for b in theirs) for a in ours]
        assert max(nearest) < 0.02  # a hundredth of a score, a tenth of a pixel


def gap(a, b):
    return abs(a - b)


def test_its_metadata_says_so(files):
    plain, whole = (open_runtime(file).metadata for file in files)
    assert whole.end_to_end
    assert not plain.end_to_end
    assert whole.class_map == plain.class_map


def test_many_images_of_one_size_in_a_call(files):
    runtime = open_runtime(files[1])
    images = torch.randint(0, 256, (3, 50, 70, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    together, alone = runtime.run_end_to_end(images), runtime.run_end_to_end(images[1:2])
    for all_three, one in zip(together, alone, strict=True):
        torch.testing.assert_close(all_three[1:2], one, rtol=1e-3, atol=1e-3)


def test_a_detector_of_no_fixed_size_needs_one(build, tmp_path):
    free = build("detr", size=None, shortest_edge=96, longest_edge=160)
    with pytest.raises(UserError, match="add --image-size"):
        export_onnx(free, tmp_path / "whole.onnx", end_to_end=True)


@pytest.mark.parametrize("opset", [13, 99])
def test_opsets_that_cannot_be_written(build, tmp_path, opset):
    with pytest.raises(UserError, match="give 17 to"):
        export_onnx(build("detr"), tmp_path / "model.onnx", opset=opset)
    assert not list(tmp_path.iterdir())
