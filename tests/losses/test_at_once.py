"""All layers matched at once promise the losses and gradients that transformers' own matchers lead to, in every family."""

import pytest
import torch
from torch import Tensor

from leandetr.losses.at_once import matching_at_once


def spread(detector):
    """New heads answer the same everywhere; here every query has a class and a place of its own."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in detector.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))


def loss_and_gradients(detector, batch):
    torch.manual_seed(3)  # of denoising and dropout
    detector.zero_grad()
    loss = detector(**batch).loss
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in detector.parameters() if p.grad is not None]


def test_the_loss_is_the_familys_own(tiny_detector, labels, any_family):
    """With more objects in an image than queries, too."""
    check_as_own(tiny_detector(any_family), labels(3, 0, 14))


@pytest.mark.parametrize("name", ["detr", "deformable_detr", "rt_detr_v2", "d_fine", "lw_detr"])
def test_without_objects(tiny_detector, labels, name):
    check_as_own(tiny_detector(name), labels(0, 0, 0))


def check_as_own(detector, labels):
    spread(detector.train())
    batch = {"pixel_values": torch.randn(3, 3, 128, 128), "labels": labels}
    expected = loss_and_gradients(detector, batch)
    with matching_at_once():
        found = loss_and_gradients(detector, batch)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
    assert len(found[1]) == len(expected[1])
    for gradient, own in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(gradient, own, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["detr", "deformable_detr", "rt_detr_v2", "lw_detr"])
def test_costs_leave_the_device_once(tiny_detector, labels, name, monkeypatch):
    detector = tiny_detector(name).train()
    copies, real = [], Tensor.cpu
    monkeypatch.setattr(Tensor, "cpu", lambda self: copies.append(self.shape) or real(self))
    batch = {"pixel_values": torch.randn(2, 3, 128, 128), "labels": labels(3, 1)}
    detector(**batch)
    apart = len(copies)
    copies.clear()
    with matching_at_once():
        detector(**batch)
    assert len(copies) == 1 < apart
