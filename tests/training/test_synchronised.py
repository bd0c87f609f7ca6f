"""Norms of several processes take each other's statistics on GPUs; elsewhere one sentence says what is in the way."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from leandetr.errors import UserError
from leandetr.training import synchronised
from leandetr.training.synchronised import synchronise


@pytest.fixture
def machine(monkeypatch):
    def pretend(device, count):
        state = SimpleNamespace(num_processes=count, device=torch.device(device))
        monkeypatch.setattr(synchronised, "processes", lambda: state)

    return pretend


def test_every_norm_that_trains_is_synchronised_and_keeps_its_tensors(tiny_detector, machine):
    machine("cuda", 2)
    detector = tiny_detector("rt_detr_v2", backbone="efficientnet_lite0", freeze_backbone_batch_norms=False).train()
    before = dict(detector.named_parameters()) | dict(detector.named_buffers())
    acting = {name for name, part in detector.named_modules() if type(part).__name__ == "BatchNormAct2d"}
    synchronise(detector)
    norms = [part for part in detector.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
    after = dict(detector.named_parameters()) | dict(detector.named_buffers())
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)
    parts = dict(detector.named_modules())
    assert all(hasattr(parts[name], "act") for name in acting)  # timm's norms compute their activation too


@pytest.mark.parametrize(
    ("family", "device", "count", "sentence"),
    [
        ("rt_detr_v2", "cpu", 2, "training.sync_batchnorm needs GPUs"),
        ("detr", "cuda", 2, "this model trains no BatchNorm"),
    ],
)
def test_what_cannot_be_synchronised_is_one_sentence(tiny_detector, machine, family, device, count, sentence):
    machine(device, count)
    with pytest.raises(UserError, match=sentence):
        synchronise(tiny_detector(family))


def test_one_process_is_as_it_is(tiny_detector, machine, capsys):
    machine("cpu", 1)
    detector = tiny_detector("rt_detr_v2")
    synchronise(detector)
    assert not any(isinstance(part, nn.SyncBatchNorm) for part in detector.modules())
    assert "nothing to synchronise with" in " ".join(capsys.readouterr().err.split())
