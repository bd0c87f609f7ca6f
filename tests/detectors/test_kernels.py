"""Which of PyTorch's kernels compute attention, and what a batch without padding spares."""

from unittest.mock import MagicMock

import pytest
import torch
from torch.nn import functional as F

from leandetr.data.batches import collate
from leandetr.detectors.create import MODELS
from leandetr.training.config import Training
from leandetr.training.trainer import AveragingTrainer


@pytest.mark.parametrize("kind", ["detector", "classifier"])
def test_whoever_runs_a_model_has_no_cudnn_attention_but_the_other_kernels(tiny_detector, tmp_path, kind):
    switches = torch.backends.cuda
    switches.enable_cudnn_sdp(True)
    if kind == "detector":
        tiny_detector("detr")
    else:
        images = MagicMock(__len__=lambda _: 1)
        AveragingTrainer(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1), images, images, Training(), tmp_path, [])
    assert not switches.cudnn_sdp_enabled()
    assert switches.flash_sdp_enabled()
    assert switches.mem_efficient_sdp_enabled()
    assert switches.math_sdp_enabled()


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputed_in_the_backward_pass_it_is_the_same(tiny_detector, labels, monkeypatch, reentrant):
    detector, enabled, attend = tiny_detector("detr").train(), [], F.scaled_dot_product_attention
    detector.model.gradient_checkpointing_enable({"use_reentrant": reentrant})

    def watched(*given, **named):
        enabled.append(torch.backends.cuda.cudnn_sdp_enabled())
        return attend(*given, **named)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    loss = detector(torch.randn(2, 3, 128, 128), torch.ones(2, 128, 128).long(), labels(2, 1)).loss
    forward = len(enabled)
    loss.backward()
    assert len(enabled) > forward > 0
    assert not any(enabled)


@pytest.mark.parametrize("name", MODELS)
def test_without_padding_no_mask_is_the_same_as_a_whole_one(tiny_detector, labels, name):
    detector, pixels = tiny_detector(name), torch.randn(2, 3, 128, 128)
    whole, given = torch.ones(2, 128, 128, dtype=torch.int64), []
    detector.model.register_forward_pre_hook(lambda _model, _given, named: given.append(named["pixel_mask"]), with_kwargs=True)
    with torch.no_grad():
        expected, found = (detector(pixels, whole, labels(2, 1), padded=padded) for padded in (True, False))
    assert given[0] is whole
    assert given[1] is None
    for key in ("logits", "boxes", "hidden", "loss"):
        torch.testing.assert_close(getattr(found, key), getattr(expected, key), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.memory.tokens, expected.memory.tokens, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("sizes", "padded"), [([(64, 96), (64, 96)], False), ([(64, 96), (64, 80)], True), ([(9, 9)], False)])
def test_a_batch_tells_whether_it_is_padded(sizes, padded):
    assert collate([(torch.zeros(3, *size), {}) for size in sizes])["padded"] is padded


@pytest.mark.parametrize("padded", [True, False])
def test_predictions_do_without_a_mask_too(tiny_detector, labels, padded):
    detector, given = tiny_detector("detr"), []
    images = [torch.randn(3, 128, 128), torch.randn(3, 128, 96 if padded else 128)]
    detector.model.register_forward_pre_hook(lambda _model, _given, named: given.append(named["pixel_mask"]), with_kwargs=True)
    detector.predict(collate(list(zip(images, labels(1, 1), strict=True))))
    assert (given[0] is not None) == padded
