"""Detectors saved as files, and a few synthetic photographs for them to look at."""

import pytest
import torch
from torch import nn

from leandetr.data.coco import class_map_of, find_split
from leandetr.data.shapes import write_shapes
from leandetr.detectors.create import create

SMALL = {
    "d_model": 32,
    "decoder_layers": 3,
    "encoder_layers": 1,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "num_queries": 12,
}


@pytest.fixture(scope="session")
def split(tmp_path_factory):
    return find_split(write_shapes(tmp_path_factory.mktemp("shapes") / "data", 1, 3, (64, 64)), "val")


@pytest.fixture(scope="session")
def more(tmp_path_factory):
    """As many as an estimate needs."""
    return find_split(write_shapes(tmp_path_factory.mktemp("more") / "data", 1, 24, (64, 64)), "val")


@pytest.fixture
def build(split):
    """build(name, small=sizes, **overrides) -> a detector whose weights give every query and layer an answer of its own."""

    def make(name="detr", noise=0.1, small=None, **overrides):
        torch.manual_seed(0)
        detector = create(name, class_map_of(split), (96, 96), "test_resnet", overrides=(small or SMALL) | overrides).eval()
        with torch.no_grad():
            for module in detector.modules():
                for parameter in module.parameters(recurse=False) if isinstance(module, nn.Linear | nn.Embedding) else ():
                    parameter.add_(torch.randn_like(parameter) * noise)
        return detector

    return make


@pytest.fixture
def saved(build, tmp_path):
    """saved(folder, name, **overrides) -> the folder of a detector."""

    def save(folder="model", name="detr", change=None, **overrides):
        detector = build(name, **overrides)
        if change is not None:
            change(detector)
        detector.save(tmp_path / folder)
        return tmp_path / folder

    return save
