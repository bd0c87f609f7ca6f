"""What post-processing promises: each head's rule, boxes in the photograph's pixels, any number of images and queries."""

import pytest
import torch

from leandetr.detectors.postprocess import postprocess
from leandetr.heads import Head


def plain(logits, boxes, head, size, top_k):
    """Every (score, label, box) of one image by loops, best first."""
    rows = []
    for query in range(len(logits)):
        cx, cy, w, h = boxes[query].tolist()
        box = [(cx - w / 2) * size[1], (cy - h / 2) * size[0], (cx + w / 2) * size[1], (cy + h / 2) * size[0]]
        if head == Head.SOFTMAX:
            probabilities = (logits[query].exp() / logits[query].exp().sum()).tolist()[:-1]
            best = max(probabilities)
            rows.append((best, probabilities.index(best), box))
        else:
            rows += [(1 / (1 + float((-z).exp())), label, box) for label, z in enumerate(logits[query])]
    return sorted(rows, key=lambda row: -row[0])[:top_k]


@pytest.mark.parametrize("head", Head)
@pytest.mark.parametrize(("images", "queries", "classes"), [(0, 5, 3), (1, 7, 1), (3, 12, 5), (2, 1, 2), (2, 40, 6)])
@pytest.mark.parametrize("top_k", [1, 10, 1000])
def test_equals_the_loop(head, images, queries, classes, top_k):
    generator = torch.Generator().manual_seed(images + queries)
    logits = torch.randn(images, queries, classes + (head == Head.SOFTMAX), generator=generator)
    boxes = torch.rand(images, queries, 4, generator=generator)
    sizes = torch.randint(50, 500, (images, 2), generator=generator)
    found = postprocess(logits, boxes, head, sizes, top_k)
    assert len(found) == images
    for image, detections in enumerate(found):
        rows = plain(logits[image], boxes[image], head, sizes[image].tolist(), top_k)
        assert len(detections.scores) == len(rows)
        torch.testing.assert_close(detections.scores, torch.tensor([row[0] for row in rows]))
        assert detections.labels.tolist() == [row[1] for row in rows]
        torch.testing.assert_close(detections.boxes, torch.tensor([row[2] for row in rows]), atol=1e-3, rtol=0)


def test_no_object_is_never_a_label():
    logits = torch.tensor([[[1.0, 0.0, 9.0]]])
    (found,) = postprocess(logits, torch.rand(1, 1, 4), Head.SOFTMAX, torch.tensor([[10, 10]]))
    assert found.labels.tolist() == [0]
    assert found.scores.item() == pytest.approx(logits.softmax(-1)[0, 0, 0].item())


def test_one_query_may_answer_with_two_classes_of_a_sigmoid_head():
    logits = torch.tensor([[[3.0, 2.0], [-5.0, -6.0]]])
    (found,) = postprocess(logits, torch.rand(1, 2, 4), Head.SIGMOID, torch.tensor([[10, 10]]), top_k=2)
    assert found.labels.tolist() == [0, 1]
    assert torch.equal(found.boxes[0], found.boxes[1])


def test_half_precision_scores_like_single():
    logits, boxes = torch.randn(1, 9, 4), torch.rand(1, 9, 4)
    (half,) = postprocess(logits.bfloat16(), boxes, Head.SIGMOID, torch.tensor([[64, 96]]))
    assert half.scores.dtype == torch.float32
    (single,) = postprocess(logits.bfloat16().float(), boxes, Head.SIGMOID, torch.tensor([[64, 96]]))
    assert torch.equal(half.scores, single.scores)
