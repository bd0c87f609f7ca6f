"""D3ETR compares answers and attention of paired queries: as a plain loop does, and whatever the order of the queries."""

from dataclasses import replace

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torchvision.ops import box_convert, generalized_box_iou

from leandetr.distillation.d3etr import DecoderDistillation, moments
from leandetr.errors import UserError

MAPS = {"self_attention", "cross_attention"}


@pytest.fixture
def batch(labels):
    torch.manual_seed(0)
    mask = torch.ones(2, 128, 128, dtype=torch.int64)
    return {"pixel_values": torch.randn(2, 3, 128, 128), "pixel_mask": mask, "labels": labels(2, 1)}


def looked(answer, width=6, height=4):
    """With random attention of queries among each other and over one level of cells."""
    layers, images, queries = answer.hidden.shape[:3]
    features = [torch.randn(images, 8, height, width)]
    among = torch.rand(layers, images, queries, queries).square()
    cells = torch.rand(layers, images, queries, height * width).square()
    among, cells = (rows / rows.sum(-1, keepdim=True) for rows in (among, cells))
    return replace(answer, features=features, self_attention=among, cross_attention=cells)


def giou(a, b):
    return generalized_box_iou(*(box_convert(box[None], "cxcywh", "xyxy") for box in (a, b)))[0, 0]


@pytest.mark.parametrize("deformable", [False, True])
def test_adaptive_pairs_equal_a_plain_loop(output, tiny_detector, batch, deformable):
    detector = tiny_detector("deformable_detr" if deformable else "smca_detr")
    term = DecoderDistillation.build(detector, detector, fixed=False)
    student, teacher = looked(output(layers=2, queries=5)), looked(output(layers=3, queries=7))
    expected = dict.fromkeys(("class", "box", "self", "cross"), 0.0)
    for layer, stage in ((0, 1), (1, 2)):  # figure 5 of DETRDistill: the last of each even group
        sums, total, of_self = dict.fromkeys(expected, 0.0), 0.0, 0.0
        for b in range(2):
            z_s, z_t, b_s, b_t = (
                student.logits[layer, b],
                teacher.logits[stage, b],
                student.boxes[layer, b],
                teacher.boxes[stage, b],
            )
            cost = torch.zeros(5, 7)
            for i in range(5):
                for j in range(7):
                    bce = torch.nn.functional.binary_cross_entropy_with_logits(z_s[i], z_t[j].sigmoid(), reduction="sum")
                    cost[i, j] = bce + 5 * (b_s[i] - b_t[j]).abs().sum() - 2 * giou(b_s[i], b_t[j])
            mine, theirs = linear_sum_assignment(cost)
            for i, j in zip(mine, theirs):
                w = z_t[j].sigmoid().max()
                total += w
                p, q = (z_t[j] / 10).softmax(-1), (z_s[i] / 10).softmax(-1)
                sums["class"] += w * 100 * (p * (p / q).log()).mean()
                sums["box"] += w * (5 * (b_s[i] - b_t[j]).abs().mean() + 2 * (1 - giou(b_s[i], b_t[j])))
                row_t, row_s = teacher.self_attention[stage, b, j, theirs], student.self_attention[layer, b, i, mine]
                if row_t.sum() >= 0.5:
                    p, q = row_t / row_t.sum(), row_s / row_s.sum()
                    sums["self"] += w * (p * (p / q).log()).sum()
                    of_self += w
                p, q = teacher.cross_attention[stage, b, j], student.cross_attention[layer, b, i]
                if not deformable:
                    sums["cross"] += w * (p * (p / q).log()).sum()
                    continue
                for axis, side in ((0, 6), (1, 4)):
                    at = torch.tensor([(((c % 6) if axis == 0 else c // 6) + 0.5) / side for c in range(24)])
                    mu_p, mu_q = (p * at).sum(), (q * at).sum()
                    v_p, v_q = (p * (at - mu_p) ** 2).sum(), (q * (at - mu_q) ** 2).sum()
                    sums["cross"] += w * ((mu_p - mu_q).abs() / b_t[j, 2 + axis] + (v_p / v_q).log().abs())
        for name, value in sums.items():
            expected[name] += value / (of_self if name == "self" else total)
    found = term(student, teacher, batch)
    assert set(found) == {f"adaptive_{name}" for name in expected}
    for name, value in expected.items():
        torch.testing.assert_close(found[f"adaptive_{name}"], value, rtol=1e-4, atol=1e-4)


def test_the_order_of_queries_does_not_matter(output, tiny_detector, batch):
    term = DecoderDistillation.build(*[tiny_detector("smca_detr")] * 2, fixed=False)
    student, teacher = looked(output(queries=5)), looked(output(queries=7))
    order = torch.randperm(5)
    moved = replace(student, **{name: getattr(student, name)[:, :, order] for name in ("logits", "boxes", "cross_attention")})
    moved.self_attention = student.self_attention[:, :, order][..., order]
    torch.testing.assert_close(term(moved, teacher, batch), term(student, teacher, batch))


@pytest.mark.parametrize("family", ["conditional_detr", "deformable_detr", "rt_detr_v2", "adamixer"])
def test_a_detector_that_is_its_own_teacher_looks_where_it_looks(tiny_detector, batch, family):
    detector = tiny_detector(family)
    term = DecoderDistillation.build(detector, detector)
    own = detector(batch["pixel_values"], batch["pixel_mask"], asked=MAPS)
    found = term(own, own, batch)
    with_cross = {"cross"} if family != "adamixer" else set()
    assert set(found) == {
        f"{group}_{part}" for group in ("fixed", "adaptive") for part in {"class", "box", "self"} | with_cross
    }
    for name, value in found.items():
        assert (name.startswith("fixed") and not name.endswith(("self", "cross"))) or value < 2e-3, (name, value)
    sum(found.values()).backward()
    assert any(p.grad is not None for p in detector.model.model.decoder.parameters())


def test_other_sizes_are_brought_to_the_students_cells(output, tiny_detector, batch):
    term = DecoderDistillation.build(*[tiny_detector("smca_detr")] * 2, fixed=False)
    student, teacher = looked(output(queries=5)), looked(output(queries=5))
    fine = [
        rows.view(3, 2, 5, 4, 6).repeat_interleave(2, 3).repeat_interleave(2, 4).flatten(3) / 4
        for rows in (teacher.cross_attention,)
    ]
    finer = replace(teacher, cross_attention=fine[0], features=[torch.zeros(2, 8, 8, 12)])
    torch.testing.assert_close(term(student, finer, batch), term(student, teacher, batch))
    torch.testing.assert_close(moments(finer.cross_attention, finer)[0], moments(teacher.cross_attention, teacher)[0])


def test_what_cannot_be_compared_is_refused(tiny_detector):
    detr, conditional = tiny_detector("detr"), tiny_detector("conditional_detr")
    with pytest.raises(UserError, match="class distributions of one kind"):
        DecoderDistillation.build(conditional, detr)
    with pytest.raises(UserError, match="queries mean something else"):
        DecoderDistillation.build(conditional, tiny_detector("deformable_detr"))
    with pytest.raises(UserError, match="both off; switch one on"):
        DecoderDistillation.build(detr, detr, fixed=False, adaptive=False)
