"""Fixtures that several areas share: the real photographs, and tiny detectors of every family."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may depend on a hub; read when transformers is imported

import functools
import sys
from pathlib import Path

import pytest
import torch
from torch.onnx._internal.exporter import _registration
from transformers.utils import logging as transformers_logging

from leandetr import cli
from leandetr.detectors.create import create
from leandetr.detectors.names import MODELS, missing
from leandetr.structures import ClassMap

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()


@pytest.fixture(scope="session", autouse=True)
def operators_are_read_once():
    """PyTorch's exporter to ONNX parses the 500 functions that it knows in every export, half of the time of a small one."""
    library = _registration.onnxscript_apis
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "get_torchlib_ops", functools.cache(library.get_torchlib_ops))
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real photographs and reference cases beside the project."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "data").is_dir():
        pytest.skip(f"needs the real photographs and reference cases in {folder}")
    return folder


@pytest.fixture
def classes() -> ClassMap:
    """Five classes whose ids in the data set have gaps, as COCO's have."""
    return ClassMap(("disc", "square", "star", "ring", "cross"), (1, 3, 7, 9, 90))


@pytest.fixture
def run(monkeypatch, capsys):
    """run(*arguments) -> exit status, stdout, stderr of `leandetr ...`, in this process."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["leandetr", *map(str, arguments)])
        status = 0
        try:
            cli.main()
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return call


DECODER = {"decoder_layers": 3, "num_queries": 12, "decoder_ffn_dim": 64}
ENCODER = DECODER | {"d_model": 64, "encoder_layers": 1}
VIT = {"num_hidden_layers": 4, "num_attention_heads": 2, "out_indices": [2, 4]}


def _own(**values):
    return {f"backbone_config.{key}": value for key, value in values.items()}


#: families that take other keys, or no backbone but their own
OTHERS = {
    "adamixer": ("test_resnet", DECODER | {"d_model": 64}),
    "dab_detr": ("test_resnet", DECODER | {"hidden_size": 64, "encoder_layers": 1}),
    "swin_detr": (None, ENCODER | _own(embed_dim=24, depths=[1, 1, 1, 1])),
    "lw_detr": (None, DECODER | {"d_model": 64, "group_detr": 3} | _own(**VIT, hidden_size=36, window_block_indices=[0, 2])),
    "rf_detr": (None, DECODER | {"d_model": 64, "group_detr": 3} | _own(**VIT, hidden_size=32, patch_size=16, num_windows=2)),
}


@pytest.fixture
def tiny_detector(classes):
    """tiny_detector(name, **overrides): an untrained detector for 128 x 128 images, 3 decoder layers, 12 queries, in eval
    mode."""

    def build(name: str, backbone: str | None = None, **overrides):
        torch.manual_seed(0)
        own_backbone, small = OTHERS.get(name, ("test_resnet", ENCODER))
        return create(name, classes, (128, 128), backbone=backbone or own_backbone, overrides=small | overrides).eval()

    return build


#: built of the parts of another family, whose tests say nearly the same
ALIKE = ("rt_detr", "deformable_detr_refine", "deformable_detr_two_stage", "lw_detr")


def pytest_generate_tests(metafunc):
    """A test that takes `any_family` runs for the name of every one."""
    if "any_family" in metafunc.fixturenames:
        names = [name for name in MODELS if not missing(name)]
        metafunc.parametrize(
            "any_family", [pytest.param(name, marks=pytest.mark.slow) if name in ALIKE else name for name in names]
        )


@pytest.fixture
def few_steps(monkeypatch):
    """Rounding by detections takes eight steps of its 512."""
    monkeypatch.setattr("leandetr.quantization.passes.reconstruct.STEPS", 8)


@pytest.fixture
def labels():
    """labels(3, 0): random objects for a batch of images, three in the first and none in the second."""

    def build(*counts: int):
        generator = torch.Generator().manual_seed(0)
        return [
            {
                "class_labels": torch.randint(0, 5, (n,), generator=generator),
                "boxes": torch.rand(n, 4, generator=generator) * 0.3 + 0.3,
                "image_id": torch.tensor([index]),
                "orig_size": torch.tensor([200, 300]),
                "size": torch.tensor([128, 128]),
            }
            for index, n in enumerate(counts)
        ]

    return build
