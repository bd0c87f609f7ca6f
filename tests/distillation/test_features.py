"""Target-aware feature distillation is eq. 5-8 as a plain loop computes them, and looks where good queries look."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_convert, box_iou

from leandetr.distillation.features import TargetAwareFeatures
from leandetr.distillation.levels import Levels
from leandetr.errors import UserError
from leandetr.heads import Head
from leandetr.losses import HungarianMatcher, pad_targets
from leandetr.structures import DetectorOutput


def term(head: Head = Head.SIGMOID, widths: tuple[int, int] = (8, 8), **options) -> TargetAwareFeatures:
    return TargetAwareFeatures(Levels(*widths), head, HungarianMatcher(2.0, 5.0, 2.0, head), **options)


def batch_of(labels: list, side: int = 32) -> dict:
    return {"labels": labels, "pixel_mask": torch.ones(len(labels), side, side, dtype=torch.int64)}


def scaled(answer: DetectorOutput, by: float) -> DetectorOutput:
    """Its features on another scale than a mean square of 1, as every family has its own."""
    return replace(answer, features=[level * by for level in answer.features])


def responses(queries: Tensor, feature: Tensor, normalised: bool) -> Tensor:
    """(M, D) queries and a (D, h, w) map -> (M, h, w), one query and one cell at a time."""
    psi = torch.zeros(len(queries), *feature.shape[1:])
    for i, query in enumerate(queries):
        for y in range(feature.shape[1]):
            for x in range(feature.shape[2]):
                psi[i, y, x] = torch.dot(feature[:, y, x], query)
        if normalised:
            psi[i] /= psi[i].abs().max()
    return psi


@pytest.mark.parametrize("head", Head)
@pytest.mark.parametrize("response", ["normalised", "raw"])
@pytest.mark.parametrize("counts", [(3, 1), (0, 2), (9, 1)], ids=["few", "one image without", "more objects than queries"])
def test_equals_equations_7_and_8_as_a_plain_loop(output, labels, head, response, counts):
    student, teacher = (scaled(output(widths=[8, 8], head=kind), 3.0) for kind in (Head.SIGMOID, head))
    objects = labels(*counts)
    pairs = HungarianMatcher(2.0, 5.0, 2.0, head)(teacher.logits[-1:], teacher.boxes[-1:], pad_targets(objects))
    expected = torch.zeros(())
    for student_map, teacher_map in zip(student.features, teacher.features):
        total, mask = torch.zeros(()), torch.zeros(())
        for image in range(2):
            psi = responses(teacher.hidden[-1, image], teacher_map[image], response == "normalised")
            _, height, width = teacher_map[image].shape
            for b, i, j in zip(pairs.images, pairs.queries, pairs.targets):
                if b != image:
                    continue
                logits, label = teacher.logits[-1, image, i], objects[image]["class_labels"][j]
                score = logits.sigmoid()[label] if head == Head.SIGMOID else logits.softmax(-1)[label]
                boxes = [
                    box_convert(box[None], "cxcywh", "xyxy")
                    for box in (teacher.boxes[-1, image, i], objects[image]["boxes"][j])
                ]
                quality = score**0.5 * box_iou(*boxes)[0, 0] ** 0.5
                difference = psi[i] * (teacher_map[image] - student_map[image])
                total = total + quality * difference.square().sum() / 8  # channels
                mask = mask + quality * psi[i].square().sum()
        mean_square = teacher_map.square().mean()
        of_level = total / mask / mean_square if response == "normalised" else total / (8 * height * width) / 2
        expected = expected + of_level / 2
    found = term(head, response=response)(student, teacher, batch_of(objects))["imitation"]
    torch.testing.assert_close(found, expected)


def test_uniform_mask_equals_equations_5_and_6(output, labels):
    student, teacher = scaled(output(), 0.5), scaled(output(), 0.5)
    expected = torch.zeros(())
    for image in range(2):
        psi = responses(teacher.hidden[-1, image], teacher.features[0][image], normalised=False).mean(0)
        difference = psi * (teacher.features[0][image] - student.features[0][image])
        expected += difference.square().sum() / (8 * 4 * 4) / 2
    found = term(mask="uniform", response="raw")(student, teacher, batch_of(labels(2, 0)))["imitation"]
    torch.testing.assert_close(found, expected)


def test_boxes_cover_cells_as_counted_in_a_fine_raster(output, labels):
    teacher = output(shapes=[(2, 8, 5, 7)])
    batch = batch_of(labels(3, 1)) | {"pixel_mask": torch.ones(2, 500, 700, dtype=torch.int64)}
    batch["pixel_mask"][1, :, 350:] = 0  # half of the frame's width is image
    (level,) = Levels(8, 8)(teacher, teacher, batch)
    boxes = teacher.boxes[-1]
    raster = torch.zeros(2, 8, 500, 700)
    for image, width in ((0, 700), (1, 350)):
        for query, box in enumerate(box_convert(boxes[image], "cxcywh", "xyxy")):
            x0, y0, x1, y1 = (box * torch.tensor([width, 500, width, 500])).round().int().tolist()
            raster[image, query, max(y0, 0) : y1, max(x0, 0) : x1] = 1
    share = torch.nn.functional.avg_pool2d(raster, 100) * level.valid
    found = term(queries="boxes", response="raw").responses(level, boxes)
    torch.testing.assert_close(found, share, atol=0.02, rtol=0)


def test_attention_makes_the_mask_as_a_plain_loop_computes_it(output, labels):
    shapes = [(2, 8, 4, 4), (2, 8, 2, 3)]
    student, teacher = output(shapes=shapes), output(shapes=shapes)
    teacher = replace(teacher, cross_attention=torch.rand(3, 2, 8, 22).softmax(-1), hidden=None)
    objects = labels(3, 1)
    pairs = HungarianMatcher(2.0, 5.0, 2.0, Head.SIGMOID)(teacher.logits[-1:], teacher.boxes[-1:], pad_targets(objects))
    expected = torch.zeros(())
    for level, (first, last) in enumerate(((0, 16), (16, 22))):
        taught, mine = teacher.features[level], student.features[level]
        total, mask = torch.zeros(()), torch.zeros(())
        for b, i, j in zip(pairs.images, pairs.queries, pairs.targets):
            psi = teacher.cross_attention[-1, b, i, first:last].view(taught.shape[-2:])
            psi = psi / psi.max()
            score = teacher.logits[-1, b, i].sigmoid()[objects[b]["class_labels"][j]]
            found, box = (box_convert(x[None], "cxcywh", "xyxy") for x in (teacher.boxes[-1, b, i], objects[b]["boxes"][j]))
            quality = (score * box_iou(found, box)[0, 0]).sqrt()
            for y in range(psi.shape[0]):
                for x in range(psi.shape[1]):
                    total += quality * psi[y, x] ** 2 * (taught[b, :, y, x] - mine[b, :, y, x]).square().mean()
                    mask += quality * psi[y, x] ** 2
        expected += total / mask / taught.square().mean() / 2
    found = term(queries="attention")(student, teacher, batch_of(objects))["imitation"]
    torch.testing.assert_close(found, expected)


def test_attention_is_asked_of_detectors_that_look_by_it(tiny_detector):
    for name in ("rt_detr_v2", "detr"):
        built = TargetAwareFeatures.build(*[tiny_detector(name)] * 2, queries="attention")
        assert built.needs == {"logits", "boxes", "features", "cross_attention"}
    with pytest.raises(UserError, match="adamixer has no attention to the image"):
        TargetAwareFeatures.build(*[tiny_detector("adamixer")] * 2, queries="attention")


def test_normalised_responses_reach_one(output):
    teacher = output()
    (level,) = Levels(8, 8)(teacher, teacher, batch_of([{}, {}]))
    psi = term().responses(level, teacher.hidden[-1])
    torch.testing.assert_close(psi.abs().amax((2, 3)), torch.ones(2, 8))


def test_equal_features_cost_nothing(output, labels):
    same = output()
    assert term()(same, same, batch_of(labels(3, 2)))["imitation"] == 0


@pytest.mark.parametrize("widths", [(8, 8), (8, 16)], ids=["same", "wider teacher"])
def test_gradient_reaches_the_student_and_its_adapter(output, labels, widths):
    student, teacher = output(widths=[widths[0]], grad=True), output(widths=[widths[1]])
    features = term(widths=widths)
    features(student, teacher, batch_of(labels(3, 2)))["imitation"].backward()
    assert student.features[0].grad.abs().sum() > 0
    assert all(parameter.grad is not None for parameter in features.parameters())


@pytest.mark.parametrize("mask", ["quality", "uniform"])
def test_a_batch_without_objects_gives_a_finite_loss(output, labels, mask):
    student = output(grad=True)
    loss = term(mask=mask)(student, output(), batch_of(labels(0, 0)))["imitation"]
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.features[0].grad).all()
    assert (loss == 0) == (mask == "quality")


def test_the_order_of_the_teachers_queries_does_not_matter(output, labels):
    student, teacher, batch = output(), output(), batch_of(labels(2, 3))
    order = torch.randperm(8)
    shuffled = {name: getattr(teacher, name)[:, :, order] for name in ("logits", "boxes", "hidden")}
    torch.testing.assert_close(term()(student, replace(teacher, **shuffled), batch), term()(student, teacher, batch))


def test_padding_does_not_count(output, labels):
    student, teacher, batch = output(), output(), batch_of(labels(2, 2))
    batch["pixel_mask"][:, 16:] = 0
    before = term()(student, teacher, batch)["imitation"]
    teacher.features[0][:, :, 2:] *= 100
    assert term()(student, teacher, batch)["imitation"] == before > 0


def test_a_floor_lets_every_cell_count(output, labels):
    student, teacher = output(widths=[8]), output(widths=[8])
    batch = batch_of(labels(3, 1))
    found = term(floor=1e6)(student, teacher, batch)["imitation"]
    unit = teacher.features[0].square().mean()
    torch.testing.assert_close(found, (teacher.features[0] - student.features[0]).square().mean() / unit)
    low, none = (term(floor=floor)(student, teacher, batch)["imitation"] for floor in (1e-9, 0.0))
    torch.testing.assert_close(low, none)
    alone = term(floor=0.5)(student, teacher, batch_of(labels(0, 0)))["imitation"]
    torch.testing.assert_close(alone, found)  # without objects there is no mask, and every cell counts alike


def test_embeddings_can_be_asked_for_instead_of_states(output, labels):
    student, teacher, batch = output(), output(), batch_of(labels(2, 2))
    as_states = replace(teacher, hidden=teacher.queries.content[None].expand(3, -1, -1, -1))
    expected = term()(student, as_states, batch)
    torch.testing.assert_close(
        term(queries="embeddings")(student, replace(teacher, hidden=teacher.hidden * 7), batch), expected
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": "qualty"}, "did you mean 'quality'"),
        ({"response": "row"}, "'raw'"),
        ({"gamma": 1.5}, "from 0 to 1"),
        ({"floor": -1}, "0 or more"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        term(**options)
