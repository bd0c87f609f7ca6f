"""A detector with fewer decoder layers answers as that layer did, and one with fewer queries as its decoder did with those."""

import pytest
import torch
from torch import nn

from leandetr.detectors.checkpoints.load import load
from leandetr.detectors.trim import check_float, in_order, query_count, trim
from leandetr.errors import UserError
from leandetr.quantization import WeightOnly, quantize
from leandetr.structures import Queries

#: built of the parts of another
#: with one layer transformers finds no second head to tie to the first
TWO_LAYERS = ("deformable_detr", "deformable_detr_refine", "rt_detr_v2", "d_fine", "deimv2")


@pytest.fixture
def lively(tiny_detector):
    """lively(name): whose layers and queries differ, as trained ones do."""

    def build(name):
        detector = tiny_detector(name)
        torch.manual_seed(1)
        with torch.no_grad():
            for module in detector.modules():
                for parameter in module.parameters(recurse=False) if isinstance(module, nn.Linear | nn.Embedding) else ():
                    parameter.add_(torch.randn_like(parameter) * 0.1)
            if name.startswith("rt_detr"):  # as it starts, all cells are alike, and their order arbitrary
                norms = [module for module in detector.modules() if isinstance(module, nn.BatchNorm2d)]
                for norm in norms:
                    norm.momentum = 1.0
                detector.train().model(pixel_values=torch.randn(8, 3, 128, 128))
                detector.eval()
        return detector

    return build


@torch.no_grad()
def answer(detector, size=(128, 128)):
    return detector(torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0)))


def test_a_trimmed_layer_answers_what_it_did(lively, any_family, tmp_path):
    detector = lively(any_family)
    whole = answer(detector)
    for layers in (1, 2):
        if layers == 1 and any_family in TWO_LAYERS:
            with pytest.raises(UserError, match="needs at least 2 decoder layers"):
                trim(detector, layers=1)
            continue
        trimmed = trim(detector, layers=layers)
        trimmed.save(tmp_path / str(layers))
        for found in (trimmed, load(tmp_path / str(layers))):
            assert found.config.decoder_layers == layers
            with torch.no_grad():
                last = found.model(pixel_values=torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0)))
            torch.testing.assert_close(last.logits, whole.logits[layers - 1], rtol=0, atol=1e-5)
            torch.testing.assert_close(last.pred_boxes, whole.boxes[layers - 1], rtol=0, atol=1e-5)
    assert detector.config.decoder_layers == 3


def test_fewer_queries_answer_as_the_decoder_does_with_them(lively, any_family):
    detector = lively(any_family)
    whole = answer(detector)
    order = list(range(11, -1, -1))
    learned = not detector.family.queries_from_encoder
    rows = order[:7] if learned else list(range(7))
    own = whole.queries
    chosen = Queries(*(None if part is None else part[:, rows] for part in (own.content, own.position, own.reference)))
    with torch.no_grad():
        expected = detector.decode(chosen, whole.memory)
    found = answer(trim(in_order(detector, order) if learned else detector, queries=7))
    assert query_count(detector) == 12
    torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=1e-5)


def test_all_at_once(lively):
    trimmed = trim(lively("rt_detr_v2"), 2, 8, (96, 64))
    assert trimmed.preprocessing.size == (96, 64)
    assert answer(trimmed, (96, 64)).logits.shape[:3] == (2, 2, 8)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"layers": 0}, "0 decoder layers: the detector has 3; ask for 1 to 3"),
        ({"layers": 4}, "4 decoder layers: the detector has 3"),
        ({"queries": 13}, "13 queries: the detector has 12"),
        ({"size": 16}, "at least 32 pixels"),
    ],
)
def test_what_cannot_be_is_said(tiny_detector, asked, sentence):
    with pytest.raises(UserError, match=sentence):
        trim(tiny_detector("detr"), **asked)


def test_a_quantized_detector_is_refused(tiny_detector):
    with pytest.raises(UserError, match="runs/small is quantized already; trim the float detector"):
        check_float(quantize(tiny_detector("detr"), WeightOnly()), "runs/small")
