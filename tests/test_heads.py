"""A head says what its logits' columns mean, and files hold its name."""

import json

import pytest
import torch

from leandetr.heads import Head


@pytest.mark.parametrize(("name", "columns"), [("softmax", 4), ("sigmoid", 3)])
def test_probabilities_are_of_the_classes_alone(name, columns):
    head, logits = Head(name), torch.tensor([[0.0, 1.0, -2.0, 3.0][:columns]])
    assert head.columns(3) == columns
    if name == "softmax":
        wanted = logits.exp() / logits.exp().sum()
        assert head.distribution(logits).sum().item() == pytest.approx(1)
    else:
        wanted = 1 / (1 + (-logits).exp())
    torch.testing.assert_close(head.distribution(logits), wanted)
    torch.testing.assert_close(head.probabilities(logits), wanted[:, :3])


def test_files_hold_its_name_and_give_it_back():
    assert json.loads(json.dumps(Head.SOFTMAX)) == "softmax"
    assert Head("softmax") is Head.SOFTMAX


def test_another_head_is_refused():
    with pytest.raises(ValueError, match="tanh"):
        Head("tanh")
