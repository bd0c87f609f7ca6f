"""A training whose numbers are not finite says where that began and what helps: one planted fault of each kind."""

import re

import pytest
import torch
from torch import nn

from leandetr.detectors.create import MODELS
from leandetr.distillation import Distiller, build_terms
from leandetr.training import trainer as engine
from leandetr.training.diverged import Diverged, first_not_finite
from leandetr.training.trainer import DetectionTrainer

FAULTY = "model.model.encoder.layers.0.mlp"
LOWER = "; lower training.lr or training.clip"


class BreaksGradients(torch.autograd.Function):
    """Answers what it is given, with gradients that are NaN."""

    @staticmethod
    def forward(ctx, values):
        return values.clone()

    @staticmethod
    def backward(ctx, gradient):
        return torch.full_like(gradient, torch.nan)


class Faulty(nn.Module):
    """A layer with a fault in its output, or in the gradient of its input, from a call on."""

    def __init__(self, layer, fault, call):
        super().__init__()
        self.layer, self.fault, self.call, self.calls = layer, fault, call, 0

    def forward(self, *inputs):
        output = self.layer(*inputs)
        self.calls += 1
        return self.fault(output) if self.calls >= self.call else output


@pytest.fixture
def trained(prepared, short, tmp_path):
    """trained(change=..., **settings): train a DETR, to which `change` has done something, and return the sentence."""

    def run(change, on_gpu=False, **settings):
        detector, train, val = prepared()
        change(detector)
        trainer = DetectionTrainer(detector, train, val, short(**settings), tmp_path, [])
        trainer._watches_on = not on_gpu
        with pytest.raises(Diverged) as caught:
            trainer.train()
        return str(caught.value)

    return run


def faulty(fault, call=1):
    def change(detector):
        layer = detector.model.model.encoder.layers[0]
        layer.mlp = Faulty(layer.mlp, fault, call)

    return change


@pytest.mark.parametrize(
    ("precision", "mend"), [("float32", LOWER), ("bfloat16", f"; set training.precision=float32, or{LOWER[1:]}")]
)
def test_in_the_forward_pass_the_first_layer_is_named(trained, precision, mend):
    said = trained(faulty(lambda output: output / 0), precision=precision)
    assert said == (
        f"the loss is not a number at step 1: the output of {FAULTY} (Faulty) is the first that is not finite{mend}"
    )


def test_between_layers_the_one_that_reads_it_is_named(trained, monkeypatch):
    from leandetr.detectors import attention

    monkeypatch.setattr(
        attention, "sdpa_attention_forward", lambda module, query, *rest, **named: (query.transpose(1, 2) * torch.inf, None)
    )

    def change(detector):
        attention.open_attention(detector.model)

    said = trained(change)
    assert "what enters model.model.encoder.layers.0.self_attn.o_proj (Linear) is the first that is not finite" in said


def test_in_the_backward_pass_alone_the_first_from_the_loss_is_named_before_a_weight_moves(trained):
    kept = {}

    def change(detector):
        faulty(BreaksGradients.apply)(detector)
        kept.update(detector=detector, before={name: weight.clone() for name, weight in detector.named_parameters()})

    said = trained(change, precision="bfloat16")
    assert re.fullmatch(
        rf"the gradient is not a number at step 1: from the loss backwards, the gradient of the output of {FAULTY}\.layer"
        rf"\S* \(\w+\) is the first that is not finite; set training.precision=float32, or{LOWER[1:]}",
        said,
    )
    assert all(torch.equal(weight, kept["before"][name]) for name, weight in kept["detector"].named_parameters())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_later_gradient_that_nobody_waited_for_is_told_by_the_next_step(trained, monkeypatch, accumulate):
    """As on a GPU, where the gradients of later steps are not looked at before they move the weights."""
    monkeypatch.setattr(engine, "WATCHED_STEPS", 1)
    fault = faulty(BreaksGradients.apply, call=2 * accumulate)
    said = trained(fault, on_gpu=True, accumulate=accumulate)
    found = re.fullmatch(
        rf"the gradient is not a number at step 2: (\d+) of (\d+) weights are not finite since an earlier step, the first is "
        rf"model\.\S+{LOWER}",
        said,
    )
    assert found
    assert 0 < int(found[1]) <= int(found[2])


def test_a_logged_loss_that_is_not_a_number_ends_the_training(prepared, short, tmp_path):
    trainer = DetectionTrainer(*prepared(), short(), tmp_path, [])
    with pytest.raises(Diverged, match="the loss is not a number at step 0"):
        trainer.log({"loss": float("nan")})


def test_on_a_gpu_too_the_first_steps_are_watched(trained):
    said = trained(faulty(BreaksGradients.apply, call=2), on_gpu=True)
    assert said.startswith("the gradient is not a number at step 2: from the loss backwards, ")


def test_in_accumulated_batches_every_one_is_looked_at(trained):
    def only_once(output):
        return BreaksGradients.apply(output) if output.requires_grad else output

    said = trained(faulty(only_once), accumulate=2)
    assert said.startswith("the gradient is not a number at step 1: from the loss backwards, ")


def test_weights_that_were_broken_before(trained):
    def change(detector):
        with torch.no_grad():
            detector.model.bbox_predictor.layers[1].bias[3] = torch.inf

    said = trained(change)
    count = r"1 of \d+ weights are not finite since an earlier step, the first is model\.bbox_predictor\.layers\.1\.bias"
    assert re.fullmatch(rf"the (loss|gradient) is not a number at step 1: {count}{LOWER}", said)


def test_a_term_of_the_loss_is_named(prepared, labels):
    (student, _, _), (teacher, _, _) = prepared(), prepared(d_model=48)
    distiller = Distiller(student, teacher, build_terms("fitnet", student, teacher))
    with torch.no_grad():
        teacher.model.model.encoder.layers[0].mlp.fc1.bias.fill_(torch.nan)
    objects = [target | {"class_labels": target["class_labels"] % 2} for target in labels(2, 1)]
    batch = {"pixel_values": torch.randn(2, 3, 64, 64), "pixel_mask": torch.ones(2, 64, 64).long(), "labels": objects}
    said = first_not_finite(distiller.train(), batch)
    assert re.fullmatch(r"every layer's output is finite, and the loss is not: fitnet/\w+", said)


@pytest.mark.parametrize("name", MODELS)
def test_a_healthy_step_of_every_family_has_nothing_to_say(tiny_detector, labels, name):
    detector = tiny_detector(name).train()
    mask = torch.ones(2, 128, 128, dtype=torch.int64)
    mask[1, 96:] = 0
    assert (
        first_not_finite(detector, {"pixel_values": torch.randn(2, 3, 128, 128), "pixel_mask": mask, "labels": labels(2, 1)})
        == ""
    )
    assert all(weight.grad is None for weight in detector.parameters())
