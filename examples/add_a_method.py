"""Add a distillation method: a `Term` is a module over two detectors' answers that returns named scalars.

This one pulls the mean of each class's scores over the queries toward the teacher's. Entered in `TERMS` and `METHODS`, it is
chosen by its name, weighted, logged and saved with checkpoints like the others.

    python examples/add_a_method.py DATA TEACHER runs/student
"""

import sys
from pathlib import Path

from torch.nn import functional as F

import leandetr
from leandetr import NewDetector, Teaching, Term, Training
from leandetr.distillation.methods import METHODS, TERMS


class MeanScores(Term):
    """L = mean over images and classes of (mean_n sigmoid(z_S) - mean_n sigmoid(z_T))^2, n the queries of the last layer."""

    name = "mean-scores"
    needs = frozenset({"logits"})

    @classmethod
    def build(cls, student, teacher):
        return cls()

    def forward(self, student, teacher, batch):
        own, taught = (output.logits[-1].sigmoid().mean(1) for output in (student, teacher))
        return {"mse": F.mse_loss(own, taught)}


TERMS[MeanScores.name] = MeanScores
METHODS["mean-scores"] = {"mean-scores": 10.0}


def main(data: str, teacher: str, out: str, training: Training = Training(epochs=30)) -> leandetr.Detector:
    student = NewDetector(model="rt_detr_v2", backbone="resnet18", image_size=(96, 96), set={"d_model": 64})
    teaching = Teaching(teacher=teacher, method="logits,mean-scores", weights={"mean-scores": 5.0})
    return leandetr.distill(data, teaching, student, Path(out), training)


if __name__ == "__main__":
    main(*sys.argv[1:])
