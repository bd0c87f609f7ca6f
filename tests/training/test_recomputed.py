"""Blocks that are computed a second time in the backward pass give the same losses, gradients and statistics, and keep less."""

import pytest
import torch
from torch import nn

from leandetr.errors import UserError
from leandetr.training.config import Training
from leandetr.training.recomputed import recompute_blocks


def step(detector, labels):
    """The loss, every gradient and every buffer after a step, and how many bytes were kept for its backward pass."""
    kept = {}

    def pack(tensor):
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    detector.zero_grad()
    torch.manual_seed(3)
    pixels = torch.randn(2, 3, 128, 128)
    torch.manual_seed(4)  # of dropout and denoising
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = detector(pixels, labels=labels).loss
    own = {value.data_ptr() for value in detector.state_dict().values()}
    size = sum(nbytes for place, nbytes in kept.items() if place not in own)
    loss.backward()
    gradients = {name: value.grad.clone() for name, value in detector.named_parameters() if value.grad is not None}
    return loss.detach(), gradients, {name: value.clone() for name, value in detector.named_buffers()}, size


def test_the_same_step_in_less_memory(tiny_detector, labels, any_family):
    (plain, recomputed), found = (tiny_detector(any_family).train() for _ in range(2)), labels(3, 1)
    recompute_blocks(recomputed)
    expected, mine = step(plain, found), step(recomputed, found)
    torch.testing.assert_close(mine[0], expected[0], rtol=1e-5, atol=1e-5)
    assert mine[1].keys() == expected[1].keys()
    for kind in (1, 2):
        for key, value in expected[kind].items():
            torch.testing.assert_close(mine[kind][key], value, rtol=1e-5, atol=1e-5, msg=key)
    assert mine[3] < 0.8 * expected[3]


def test_norms_that_train_count_a_batch_once(tiny_detector, labels):
    detector = tiny_detector("rt_detr_v2", backbone="test_resnet", freeze_backbone_batch_norms=False).train()
    norms = {name: part for name, part in detector.named_modules() if isinstance(part, nn.BatchNorm2d)}
    assert norms
    recompute_blocks(detector)
    step(detector, labels(2, 2))
    counts = {int(norm.num_batches_tracked) for norm in norms.values()}
    assert counts == {1}


def test_not_with_compiled_kernels():
    with pytest.raises(UserError, match="leave out it or compile"):
        Training(compile=True, gradient_checkpointing=True)
