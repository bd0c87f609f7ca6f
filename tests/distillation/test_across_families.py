"""Every method with every kind of teacher: it trains the student, or says in one sentence what differs."""

import pytest
import torch

from leandetr.detectors.create import create
from leandetr.distillation import METHODS, Distiller, build_terms
from leandetr.errors import UserError

DECODER = {"decoder_layers": 2, "num_queries": 10, "decoder_ffn_dim": 32}
PLAIN = DECODER | {"d_model": 64, "encoder_layers": 1}
SWIN = PLAIN | {"backbone_config.embed_dim": 24, "backbone_config.depths": [1, 1, 1, 1]}
LARGER = {"d_model": 96, "decoder_layers": 3, "num_queries": 13}

#: student and teacher: name, backbone, overrides
PAIRS = {
    "fewer stages, queries and channels": (("rt_detr_v2", "test_resnet", PLAIN), ("rt_detr_v2", "test_resnet", PLAIN | LARGER)),
    "another head": (("conditional_detr", "test_resnet", PLAIN), ("detr", "test_resnet", PLAIN | LARGER)),
    "other queries": (("rt_detr", "test_resnet", PLAIN), ("deformable_detr", "test_resnet", PLAIN)),
    "no encoder": (
        ("adamixer", "test_resnet", DECODER | {"d_model": 64, "decoder_layers": 1, "num_queries": 6}),
        ("adamixer", "test_resnet", DECODER | {"d_model": 64}),
    ),
    "self-distillation": (("swin_detr", None, SWIN), ("swin_detr", None, SWIN)),
    "a light backbone": (("detr", "efficientnet_lite0", PLAIN), ("detr", "resnet18", PLAIN)),
}
#: both detectors must mean the same by a query, and say a class alike
CONSISTENT = {"detrdistill", "assignment", "kd-detr", "d3etr", "clockdistill", "target-queries"}
#: what a pair cannot do
REFUSED = {
    "fewer stages, queries and channels": {"hard-label", "soft-label", "soft-class", "soft-box"},
    "another head": CONSISTENT,
    "other queries": CONSISTENT | {"hard-label", "soft-label", "soft-class", "soft-box"},
}


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS)
def test_every_method_trains_the_student_or_says_what_differs(classes, labels, pair):
    refused = set()
    alone = {"orthogonality", "drd", "auxiliary-queries", "encoder-layers", "aq-detr", "vision-alignment"}
    ours = set(METHODS) - alone  # tested on their own
    for method in sorted(ours):
        torch.manual_seed(0)
        student, teacher = (create(name, classes, (128, 128), backbone, overrides=o) for name, backbone, o in PAIRS[pair])
        try:
            distiller = Distiller(student, teacher, build_terms(method, student, teacher)).train()
        except UserError:
            refused.add(method)
            continue
        for counts in ((2, 1), (0, 0)):
            mask = torch.ones(2, 128, 128, dtype=torch.int64)
            loss = distiller(torch.randn(2, 3, 128, 128), mask, labels(*counts)).loss
            loss.backward()
            assert torch.isfinite(loss), (method, counts)
        assert all(p.grad is None for p in teacher.parameters()), method
        assert all(p.grad.isfinite().all() for p in distiller.parameters() if p.grad is not None), method
    assert refused == REFUSED.get(pair, set())
