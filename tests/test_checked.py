"""Settings promise one sentence for whatever is wrong with them, wherever they are built, and never change."""

import pytest
from pydantic import ValidationError

from leandetr.detectors.spec import NewBackbone, NewDetector
from leandetr.distillation.spec import Teaching
from leandetr.errors import UserError
from leandetr.training.config import Training
from leandetr.verbs import LowBitTraining


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: NewDetector(model="detr", bacbone="resnet18"), "NewDetector: unknown key 'bacbone': did you mean 'backbone'"),
        (
            lambda: NewDetector(model="detr", image_size=(64,)),
            "NewDetector: image_size: give height and width, or the shorter side, in whole pixels",
        ),
        (NewDetector, "NewDetector: give either checkpoint or model"),
        (
            lambda: NewDetector.named("runs/a", backbone="resnet18"),
            "a checkpoint has its own backbone: leave out those of a new",
        ),
        (lambda: NewBackbone(image_size=(8, 8)), "NewBackbone: name: field required"),
        (lambda: Teaching(method="logits"), "Teaching: teacher: field required"),
        (lambda: Teaching(teacher="a", weights={"logits": "much"}), "Teaching: weights.logits: input should be a valid number"),
        (lambda: Training(epochs=0), "Training: epochs: input should be greater than or equal to 1"),
        (lambda: LowBitTraining(training={"epoch": 1}), "unknown key 'training.epoch': did you mean 'training.epochs'"),
        (lambda: LowBitTraining(training=Training(), stages=2, stage_one="a"), "leave out either"),
        (
            lambda: LowBitTraining(training=Training(), teaching=Teaching(teacher="a", cache="b")),
            "teaching.cache: low-bit training keeps no answers",
        ),
    ],
)
def test_a_fault_is_one_sentence_with_the_key(build, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_a_name_is_a_model_or_a_checkpoint():
    assert NewDetector.named("detr", image_size=(64, 64)) == NewDetector(model="detr", image_size=(64, 64))
    assert NewDetector.named("runs/detr") == NewDetector(checkpoint="runs/detr")


def test_they_never_change():
    with pytest.raises(ValidationError, match="frozen"):
        Training().epochs = 3
