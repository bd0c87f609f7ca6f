"""Trained on a GPU, the channels of a pixel lie side by side: no family minds."""

import pytest
import torch

from leandetr.detectors.create import MODELS


@pytest.mark.parametrize("name", MODELS)
def test_channels_side_by_side_change_no_loss_and_no_gradient(tiny_detector, labels, name):
    # rounding alone moves some of AdaMixer's samples from one cell to the next
    detector, pixels = tiny_detector(name), torch.randn(2, 3, 128, 128)
    if name == "adamixer":
        detector, pixels = detector.double(), pixels.double()
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        detector.to(memory_format=layout).zero_grad()
        loss = detector(pixels.contiguous(memory_format=layout), labels=labels(3, 1)).loss
        loss.backward()
        found.append((loss.item(), torch.cat([p.grad.flatten() for p in detector.parameters() if p.grad is not None])))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-4)
    assert torch.cosine_similarity(found[0][1], found[1][1], dim=0) > 0.999


def test_a_detector_with_channels_side_by_side_is_saved_as_any(tiny_detector, tmp_path):
    detector = tiny_detector("detr")
    detector.save(tmp_path / "plain")
    detector.to(memory_format=torch.channels_last).save(tmp_path / "side_by_side")
    assert (tmp_path / "plain/model.safetensors").read_bytes() == (tmp_path / "side_by_side/model.safetensors").read_bytes()
