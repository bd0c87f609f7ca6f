"""Whatever a checkpoint's preprocessor_config.json says, every engine answers a photograph as transformers does."""

import json

import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoModelForObjectDetection

import leandetr
from leandetr.deployment.end_to_end import resize
from leandetr.deployment.onnx import export_onnx
from leandetr.errors import UserError

SETTINGS = {
    "bicubic": {"resample": 3},
    "bytes": {"do_rescale": False, "image_mean": [120.0] * 3, "image_std": [60.0] * 3},
    "not antialiased": {"image_processor_type": "RfDetrImageProcessor"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bicubic", "bytes", "not antialiased"])
def test_detections_are_those_of_transformers(build, shared, tmp_path, name):
    values = SETTINGS[name]
    build("detr").save(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    photograph = sorted((shared / "data/bccd/val").glob("*.jpg"))[0]
    expected = of_transformers(tmp_path, Image.open(photograph))
    exported = export_onnx(leandetr.load(tmp_path), tmp_path / "m.onnx", end_to_end="resample" not in values)
    for source in (tmp_path, exported):
        found = leandetr.open_runtime(source).predict(photograph, threshold=0)
        assert (found.scores - expected["scores"]).abs().max() < 1e-3, source
        assert (found.boxes - expected["boxes"]).abs().max() < 0.5, source


@torch.no_grad()
def of_transformers(folder, photograph):
    processor = AutoImageProcessor.from_pretrained(folder)
    output = AutoModelForObjectDetection.from_pretrained(folder).eval()(**processor(photograph, return_tensors="pt"))
    probabilities = output.logits.softmax(-1)[0, :, :-1].max(-1).values
    order = probabilities.argsort(descending=True)
    cx, cy, width, height = output.pred_boxes[0, order].unbind(-1)
    corners = torch.stack([cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2], -1)
    return {"scores": probabilities[order], "boxes": corners * torch.tensor(photograph.size * 2)}


def test_resizing_without_antialias_is_pytorchs():
    for source, target in [((47, 90), (96, 64)), ((96, 31), (31, 96))]:
        pixels = torch.rand(1, 3, *source, generator=torch.Generator().manual_seed(0)) * 255
        expected = F.interpolate(pixels, target, mode="bilinear", align_corners=False)
        torch.testing.assert_close(resize(pixels, target, antialias=False), expected, rtol=1e-4, atol=1e-3)


def test_an_end_to_end_file_says_that_it_cannot_resize_so(build, tmp_path):
    detector = build("detr", size=(96, 96), resample="bicubic")
    with pytest.raises(UserError, match="resample is bicubic; leave out --end-to-end"):
        export_onnx(detector, tmp_path / "whole.onnx", end_to_end=True)
