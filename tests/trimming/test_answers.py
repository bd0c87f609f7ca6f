"""What one forward says of every trimmed detector is what that detector finds itself."""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from leandetr.detectors.trim import in_order, trim
from leandetr.structures import Batch, DetectorOutput, Memory, Queries
from leandetr.trimming import answers as module
from leandetr.trimming.answers import answers, order_of_use


@pytest.fixture
def batch(labels):
    pixels = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    return Batch(pixel_values=pixels, pixel_mask=torch.ones(2, 128, 128, dtype=torch.int64), labels=labels(3, 2), padded=False)


@pytest.mark.parametrize("name", ["adamixer", "dab_detr", "d_fine", "lw_detr"])
def test_of_every_layer_and_number_of_queries(tiny_detector, name, batch):
    detector = tiny_detector(name)
    torch.manual_seed(1)
    with torch.no_grad():
        for key, parameter in detector.named_parameters():
            if not key.endswith(("reg_scale", "up")):
                parameter.add_(torch.randn_like(parameter) * 0.02)
    if not detector.family.queries_from_encoder:
        detector = in_order(detector, range(11, -1, -1))
    found = answers(detector, [batch], [3, 2], [5])
    assert set(found) == {(3, 5), (2, 5)}
    for (layers, count), by_image in found.items():
        for (_, ours), own in zip(by_image, trim(detector, layers, count).predict(batch), strict=True):
            torch.testing.assert_close(ours.scores, own.scores, rtol=0, atol=1e-5)
            torch.testing.assert_close(ours.boxes, own.boxes, rtol=0, atol=2e-3)  # pixels


def test_use_is_the_score_of_matched_objects_over_all_images(tiny_detector, batch, monkeypatch):
    detector = tiny_detector("deformable_detr")
    generator = torch.Generator().manual_seed(3)
    logits, boxes = torch.randn(1, 2, 12, 5, generator=generator), torch.rand(1, 2, 12, 4, generator=generator)
    output = DetectorOutput(logits, boxes, torch.zeros(1, 2, 12, 64), Queries(), Memory(torch.zeros(0), [], {}))
    monkeypatch.setattr(module, "_output", lambda *_: output)
    use = np.zeros(12)
    for image, target in enumerate(batch["labels"]):  # once more, one pair after the other
        cost = np.zeros((12, len(target["boxes"])))
        given = np.zeros_like(cost)
        for query in range(12):
            for place, (label, box) in enumerate(zip(target["class_labels"], target["boxes"])):
                mine = boxes[0, image, query]
                given[query, place] = torch.sigmoid(logits[0, image, query, label])
                cost[query, place] = (
                    5 * (mine - box).abs().sum() - 2 * giou(mine.tolist(), box.tolist()) - 2 * given[query, place]
                )
        rows, places = linear_sum_assignment(cost)
        use[rows] += given[rows, places]
    order = order_of_use(detector, [batch])
    assert sorted(order) == list(range(12))
    assert order[: np.count_nonzero(use)] == np.argsort(-use)[: np.count_nonzero(use)].tolist()


def giou(a, b):
    """Rezatofighi et al., CVPR 2019, of two (cx, cy, w, h)."""
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = ((x - w / 2, y - h / 2, x + w / 2, y + h / 2) for x, y, w, h in (a, b))
    shared = max(0, min(ax1, bx1) - max(ax0, bx0)) * max(0, min(ay1, by1) - max(ay0, by0))
    union = a[2] * a[3] + b[2] * b[3] - shared
    hull = (max(ax1, bx1) - min(ax0, bx0)) * (max(ay1, by1) - min(ay0, by0))
    return shared / union - (hull - union) / hull
