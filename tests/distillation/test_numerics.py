"""Every method with objects and detectors that arithmetic does not like: a finite loss and finite gradients."""

import pytest
import torch
from torch import nn

from leandetr.detectors.create import create
from leandetr.distillation import METHODS, Distiller, build_terms

SMALL = {"d_model": 32, "decoder_layers": 2, "num_queries": 6, "decoder_ffn_dim": 32, "encoder_layers": 1}
SIDE = 64
#: what a term needs beside it
WITH = {"orthogonality": "hard-label,orthogonality"}
LEFT_OUT = {"vision-alignment"}  # its teacher is a vision model, without boxes


def objects(*boxes):
    boxes = torch.tensor(boxes).reshape(-1, 4)
    return {"class_labels": torch.zeros(len(boxes), dtype=torch.long), "boxes": boxes}


PIXEL = 1 / SIDE
LABELS = {
    "no objects": [objects(), objects()],
    "one pixel": [objects([0.5, 0.5, PIXEL, PIXEL], [PIXEL / 2, PIXEL / 2, PIXEL, PIXEL]), objects()],
    "a box twice, and one of no width": [objects([0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.2, 0.2]), objects([0.5, 0.5, 0.0, 0.1])],
}


def dead(teacher):
    """No channel of its feature maps and of its last layers says anything."""
    with torch.no_grad():
        for module in (teacher.family.projection(teacher.model), *list(teacher.model.modules())[-12:]):
            for layer in module.modules() if module is not None else ():
                if isinstance(layer, nn.Linear | nn.Conv2d):
                    nn.init.zeros_(layer.weight)


@pytest.mark.parametrize("method", sorted(set(METHODS) - LEFT_OUT))
def test_losses_and_gradients_stay_finite(classes, method):
    torch.manual_seed(0)
    student, teacher = (create("detr", classes, (SIDE, SIDE), "test_resnet", overrides=SMALL) for _ in range(2))
    dead(teacher)
    distiller = Distiller(student, teacher, build_terms(WITH.get(method, method), student, teacher)).train()
    mask = torch.ones(2, SIDE, SIDE, dtype=torch.int64)
    pixels = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    pixels[1] = 0  # a blank image
    for what, labels in LABELS.items():
        distiller.zero_grad()
        loss = distiller(pixels, mask, labels).loss
        loss.backward()
        assert torch.isfinite(loss), what
        broken = [name for name, p in distiller.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
        assert not broken, (what, broken[:3])
