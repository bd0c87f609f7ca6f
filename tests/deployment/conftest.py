"""Detectors that were exported once for all tests here, and a photograph to run them on."""

import numpy as np
import pytest
import torch
from PIL import Image

from leandetr.deployment.onnx import export_onnx
from leandetr.detectors.create import create
from leandetr.structures import Batch, ClassMap, Preprocessing

CLASSES = ClassMap(("disc", "square", "star", "ring", "cross"), (1, 3, 7, 9, 90))
SMALL = {"d_model": 32, "decoder_layers": 2, "encoder_layers": 1, "decoder_ffn_dim": 64}


@pytest.fixture(scope="session")
def build():
    """build(name, seed, noise): a tiny detector for 96 x 96 pixels. RT-DETR has a query a cell, so it need not choose."""

    def make(name, seed=1, noise=0.2, **preprocessing):
        torch.manual_seed(seed)
        queries = {} if name.startswith("rt_detr") else {"num_queries": 12}
        detector = create(name, CLASSES, (96, 96), backbone="test_resnet", overrides=SMALL | queries).eval()
        with torch.no_grad():  # as they start, all queries look alike
            for parameter in detector.parameters():
                parameter.add_(torch.randn_like(parameter) * noise)
        if preprocessing:
            detector.preprocessing = Preprocessing(**preprocessing)
        return detector

    return make


@pytest.fixture(scope="session")
def artefact(build, tmp_path_factory):
    """artefact(name) -> (detector, the file it was exported to)."""
    made = {}

    def export(name, **preprocessing):
        key = name, *preprocessing.items()
        if key not in made:
            detector = build(name, **preprocessing)
            made[key] = detector, export_onnx(detector, tmp_path_factory.mktemp("onnx") / f"{name}.onnx")
        return made[key]

    return export


@pytest.fixture
def batch():
    """batch(2, 96, 128): random pixels; with `padded`, the right half of the last image is none."""

    def random(images, height=96, width=96, padded=False):
        generator = torch.Generator().manual_seed(height + images)
        mask = torch.ones(images, height, width, dtype=torch.int64)
        if padded:
            mask[-1, :, width // 2 :] = 0
        target = {
            "class_labels": torch.zeros(0, dtype=torch.int64),
            "boxes": torch.zeros(0, 4),
            "image_id": torch.tensor([1]),
            "orig_size": torch.tensor([480, 640]),
            "size": torch.tensor([height, width]),
        }
        pixels = torch.randn(images, 3, height, width, generator=generator) * mask[:, None]
        return Batch(pixel_values=pixels, pixel_mask=mask, labels=[dict(target) for _ in range(images)])

    return random


@pytest.fixture
def photograph(tmp_path):
    """photograph("a.png"): a small picture in a folder of its own."""

    def write(name="photo.png", size=(120, 80)):
        path = tmp_path / "photographs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        return path

    return write
