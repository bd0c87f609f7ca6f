"""The moving average against its definition, and the weights it stands in for."""

import pytest
import torch
from torch import nn

from leandetr.training.ema import MovingAverage


@pytest.fixture
def module():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))


def move(module):
    with torch.no_grad():
        for tensor in (*module.parameters(), module[1].running_mean):
            tensor.add_(torch.randn_like(tensor))
        module[1].num_batches_tracked.add_(1)


def fail_within(context, check):
    with context:
        check()
        raise ZeroDivisionError


def test_equals_the_definition(module):
    average, shadow = MovingAverage(module, 0.3), module[0].weight.detach().clone()
    mean = module[1].running_mean.clone()
    for step in range(1, 8):
        move(module)
        average.update()
        decay = min(0.3, (1 + step) / (10 + step))
        shadow = decay * shadow + (1 - decay) * module[0].weight.detach()
        mean = decay * mean + (1 - decay) * module[1].running_mean
    torch.testing.assert_close(average.shadow["0.weight"], shadow)
    torch.testing.assert_close(average.shadow["1.running_mean"], mean)
    assert average.shadow["1.num_batches_tracked"] == 7


def test_stands_in_and_gives_back_even_after_an_error(module):
    average = MovingAverage(module, 0.9)
    move(module)
    average.update()
    own = {name: tensor.clone() for name, tensor in module.state_dict().items()}

    def averaged_now():
        assert all(torch.equal(tensor, average.shadow[name]) for name, tensor in module.state_dict().items())

    with pytest.raises(ZeroDivisionError):
        fail_within(average.applied(), averaged_now)
    assert all(torch.equal(tensor, own[name]) for name, tensor in module.state_dict().items())
    assert not torch.equal(own["0.weight"], average.shadow["0.weight"])


def test_goes_on_from_its_state(module):
    first = MovingAverage(module, 0.9)
    for _ in range(3):
        move(module)
        first.update()
    state = {name: tensor.clone() for name, tensor in first.state().items()}
    second = MovingAverage(module, 0.9)
    second.load(state)
    move(module)
    first.update()
    second.update()
    assert second.steps == first.steps == 4
    assert all(torch.equal(first.shadow[name], second.shadow[name]) for name in first.shadow)


def test_tied_weights_are_averaged_once():
    module = nn.ModuleDict({"a": nn.Linear(2, 2)})
    module["b"] = module["a"]
    average = MovingAverage(module, 0.5)
    with torch.no_grad():
        module["a"].weight.fill_(1.0)
    before = average.shadow["a.weight"].clone()
    average.update()
    torch.testing.assert_close(average.shadow["a.weight"], before * 2 / 11 + 9 / 11)
