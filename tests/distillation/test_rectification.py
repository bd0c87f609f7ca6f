"""Foreground queries, their partners and the distance of what they gathered, against loops over queries; the rows of the
paper's table; a student that keeps its alignment."""

from dataclasses import replace

import pytest
import torch
from torch.nn import Identity
from torchvision.ops import generalized_box_iou

from leandetr.boxes import to_corners
from leandetr.detectors.alignment import alignment_of
from leandetr.detectors.checkpoints.load import load
from leandetr.detectors.create import create
from leandetr.distillation import Distillation, Distiller, build_terms
from leandetr.distillation.rectification import DistributionRectification, foreground_queries, partners
from leandetr.errors import UserError
from leandetr.losses import pad_targets
from leandetr.quantization import LowBit
from leandetr.quantization.passes.operands import operand_settings


def giou(a, b):
    return generalized_box_iou(to_corners(a)[None], to_corners(b)[None]).item()


def loop_kept(boxes, objects, tau):
    """The definition, one query and one object at a time."""
    kept = set()
    for target in objects:
        overlaps = [giou(box, target) for box in boxes]
        best = max(overlaps)
        if best > 0:
            kept |= {j for j, overlap in enumerate(overlaps) if overlap > tau * best}
    return kept


def loop_partner(box, teacher):
    scores = [2 * giou(box, other) - 5 * (box - other).abs().sum().item() for other in teacher]
    return scores.index(max(scores))


@pytest.fixture
def pair(output, labels):
    """A student's and a teacher's random output with co-attended features, and a batch with objects in one image of two."""
    student, teacher = output(layers=2, queries=9, grad=True), output(layers=3, queries=7)
    student = replace(student, attended=torch.randn(2, 2, 9, 8, requires_grad=True))
    teacher = replace(teacher, attended=torch.randn(3, 2, 7, 8))
    return student, teacher, {"labels": labels(3, 0)}


@pytest.fixture
def detectors(tiny_detector):
    return tiny_detector("detr", backbone="test_resnet"), tiny_detector("detr", backbone="test_resnet", decoder_layers=2)


@pytest.mark.parametrize("tau", [0.1, 0.6, 0.95])
def test_kept_queries_and_partners_are_the_definitions(tau):
    generator = torch.Generator().manual_seed(3)
    sizes = [0, 1, 5, 2]
    boxes, teacher = (torch.rand(4, 30, 4, generator=generator) * 0.3 + 0.3 for _ in range(2))
    labels = [
        {"class_labels": torch.zeros(n, dtype=torch.int64), "boxes": torch.rand(n, 4, generator=generator) * 0.4 + 0.1}
        for n in sizes
    ]
    kept, chosen = foreground_queries(boxes, pad_targets(labels), tau), partners(boxes, teacher)
    for image, target in enumerate(labels):
        assert set(kept[image].nonzero().flatten().tolist()) == loop_kept(boxes[image], target["boxes"], tau)
        assert chosen[image].tolist() == [loop_partner(box, teacher[image]) for box in boxes[image]]


def test_every_object_with_positive_giou_keeps_a_query_and_no_object_keeps_none():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        boxes = torch.rand(2, 12, 4, generator=generator) * 0.5 + 0.1
        objects = torch.rand(4, 4, generator=generator) * 0.5 + 0.1
        labels = [
            {"class_labels": torch.zeros(4, dtype=torch.int64), "boxes": objects},
            {"class_labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)},
        ]
        kept = foreground_queries(boxes, pad_targets(labels), 0.6)
        assert not kept[1].any()
        for target in objects:
            overlaps = [giou(box, target) for box in boxes[0]]
            assert max(overlaps) <= 0 or kept[0, overlaps.index(max(overlaps))]


def test_an_object_that_nothing_overlaps_keeps_no_query():
    far = {"class_labels": torch.zeros(1, dtype=torch.int64), "boxes": torch.tensor([[0.9, 0.9, 0.05, 0.05]])}
    boxes = torch.tensor([[[0.1, 0.1, 0.1, 0.1], [0.2, 0.1, 0.1, 0.1], [0.5, 0.5, 0.0, 0.0]]])
    assert not foreground_queries(boxes, pad_targets([far]), 0.6).any()


@pytest.mark.parametrize(("tau", "share"), [(0, 1.0), (1, 0.0)])
def test_tau_0_keeps_all_and_tau_1_none(pair, tau, share):
    student, _, batch = pair
    kept = foreground_queries(student.boxes[-1], pad_targets(batch["labels"]), tau)
    assert kept[0].float().mean() == share
    assert not kept[1].any()


def test_loss_is_the_mean_distance_of_the_pairs_and_gradients_reach_the_student_alone(pair, detectors):
    student, teacher, batch = pair
    term = DistributionRectification(*detectors, tau=0.3)
    loss = term(student, teacher, batch)["attended"]
    distances = []
    for j in sorted(loop_kept(student.boxes[-1, 0].detach(), batch["labels"][0]["boxes"], 0.3)):
        k = loop_partner(student.boxes[-1, 0, j].detach(), teacher.boxes[-1, 0])
        distances.append((student.attended[-1, 0, j] - teacher.attended[-1, 0, k]).square().sum().sqrt())
    unit = torch.stack([row.square().sum() for image in teacher.attended[-1] for row in image]).mean().sqrt()
    torch.testing.assert_close(loss, torch.stack(distances).mean() / unit)
    loss.backward()
    assert student.attended.grad[-1, 0].abs().sum() > 0
    assert student.attended.grad[0].abs().sum() == student.attended.grad[-1, 1].abs().sum() == 0
    assert student.boxes.grad is None


def test_the_scale_of_the_features_does_not_matter_and_gathering_nothing_loses_about_1(pair, detectors):
    student, teacher, batch = pair
    term = DistributionRectification(*detectors, tau=0)
    loss = term(student, teacher, batch)["attended"]
    small = [replace(answer, attended=answer.attended * 0.02) for answer in (student, teacher)]
    torch.testing.assert_close(term(*small, batch)["attended"], loss)
    nothing = replace(student, attended=torch.zeros_like(student.attended))
    assert term(nothing, teacher, batch)["attended"] == pytest.approx(1, abs=0.2)


def test_an_adapter_gives_nothing_to_a_query_that_has_gathered_nothing(tiny_detector):
    student, teacher = tiny_detector("detr"), tiny_detector("detr", d_model=128)
    adapter = DistributionRectification(student, teacher).adapter
    assert adapter(torch.zeros(3, 64)).eq(0).all()


@pytest.mark.parametrize(
    ("name", "aligned"),
    [
        *(("detr", "cross"), ("conditional_detr", "cross"), ("smca_detr", "cross")),
        *(("rt_detr_v2", "self"), ("d_fine", "self"), ("deformable_detr", "self"), ("lw_detr", "self")),
    ],
)
def test_every_alignment_feeds_a_quantizer(tiny_detector, name, aligned):
    student = tiny_detector(name, backbone="test_resnet" if name != "lw_detr" else None)
    DistributionRectification.prepare(student)
    assert alignment_of(student.config) == aligned
    rounded, _, _ = operand_settings(student.model, LowBit())
    slots = [module for module in student.model.modules() if type(getattr(module, "align", Identity())) is not Identity]
    assert len(slots) == 3
    assert all(slot.query in rounded for slot in slots)
    DistributionRectification.prepare(student)  # what it has is kept


def test_an_alignment_that_feeds_no_quantizer_is_said(tiny_detector, caplog):
    DistributionRectification.prepare(tiny_detector("rt_detr_v2"), alignment="cross")
    assert "no quantizer sees the aligned queries" in caplog.text


def test_nothing_to_imitate_is_a_zero_that_can_be_differentiated(pair, detectors, labels):
    student, teacher, batch = pair
    for term, objects in ((DistributionRectification(*detectors, tau=1), batch["labels"]), (None, labels(0, 0))):
        term = term or DistributionRectification(*detectors)
        loss = term(student, teacher, {"labels": objects})["attended"]
        assert loss == 0
        loss.backward()
    same = replace(student, attended=teacher.attended[..., :1, :].expand(-1, -1, 9, -1).clone().requires_grad_())
    taught = replace(teacher, attended=same.attended[..., :7, :].detach())
    loss = DistributionRectification(*detectors, tau=0)(same, taught, batch)["attended"]
    loss.backward()
    assert loss == 0
    assert same.attended.grad.isfinite().all()


@pytest.mark.parametrize("alignment", ["none", "auto"])
@pytest.mark.parametrize("tau", [1, 0.6])
def test_the_four_rows_of_the_table(detectors, labels, alignment, tau):
    student, teacher = detectors
    terms = build_terms(Distillation(method="drd", options={"drd": {"alignment": alignment, "tau": tau}}), student, teacher)
    assert [(term.name, weight) for term, weight in terms] == [("drd", 2.5)]
    assert alignment_of(student.config) == (None if alignment == "none" else "cross")
    assert alignment_of(teacher.config) is None
    batch = {"pixel_values": torch.randn(2, 3, 128, 128), "pixel_mask": torch.ones(2, 128, 128).long(), "labels": labels(3, 1)}
    found = Distiller(student.train(), teacher, terms)(**batch)
    assert (found.logs["drd/attended"] > 0) == (tau < 1)
    found.loss.backward()


@pytest.mark.parametrize(
    ("student", "teacher"),
    [("rt_detr_v2", "rt_detr_v2"), ("deformable_detr", "detr"), ("conditional_detr", "conditional_detr")],
)
def test_families_and_widths_are_bridged(tiny_detector, labels, student, teacher, tmp_path):
    student = tiny_detector(student, backbone="test_resnet")
    teacher = tiny_detector(teacher, backbone="test_resnet", d_model=128, num_queries=15, decoder_layers=2)
    terms = build_terms(Distillation(method="drd", options={"drd": {"tau": 0}}), student, teacher)
    batch = {"pixel_values": torch.randn(2, 3, 128, 128), "pixel_mask": torch.ones(2, 128, 128).long(), "labels": labels(3, 1)}
    found = Distiller(student.train(), teacher, terms)(**batch)
    found.loss.backward()
    assert terms[0][0].adapter.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in teacher.parameters())
    student.eval().save(tmp_path)
    images = batch["pixel_values"]
    assert torch.equal(load(tmp_path)(images).boxes, student(images).boxes)


def test_bad_input_is_one_sentence(detectors, classes):
    student, teacher = detectors
    for tau in (-0.1, 1.5, float("nan")):
        with pytest.raises(UserError, match=r"tau of the drd term is .*; give a number from 0 to 1"):
            DistributionRectification(student, teacher, tau=tau)
    with pytest.raises(UserError, match="corss"):
        DistributionRectification.prepare(student, alignment="corss")
    overrides = {"decoder_layers": 2, "num_queries": 12, "decoder_ffn_dim": 64, "d_model": 32}
    adamixer = create("adamixer", classes, (64, 64), backbone="test_resnet", overrides=overrides)
    with pytest.raises(UserError, match="the decoder of adamixer has no attention to the image"):
        DistributionRectification(student, adamixer)
