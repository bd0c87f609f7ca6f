"""What the transforms promise: a model's own preprocessing, boxes on their objects, views that follow from the seed."""

import numpy as np
import pytest
import torch
from transformers import DetrImageProcessor, RTDetrImageProcessor

from leandetr.boxes import to_corners
from leandetr.data.transforms import AUGMENTATIONS, eval_transform, normalised, train_transform
from leandetr.data.views import resized
from leandetr.errors import UserError
from leandetr.structures import Preprocessing

FIXED = Preprocessing(size=(96, 128))
FREE = Preprocessing(size=None, shortest_edge=96, longest_edge=160, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
NO_BOXES = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)


def photograph(height=120, width=200, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def painted():
    """Grey with one pure red, green and blue rectangle, and their boxes and labels (the colour's channel)."""
    pixels = np.full((120, 200, 3), 100, dtype=np.uint8)
    boxes = torch.tensor([[10, 10, 60, 50], [80, 40, 130, 110], [150, 20, 190, 100]], dtype=torch.float64)
    for channel, (x0, y0, x1, y1) in enumerate(boxes.int().tolist()):
        pixels[y0:y1, x0:x1] = np.eye(3)[channel] * 255
    return torch.from_numpy(pixels).permute(2, 0, 1), boxes, torch.arange(3)


@pytest.mark.parametrize("size", [(120, 200), (200, 120), (64, 64), (50, 301)])
@pytest.mark.parametrize(
    ("preprocessing", "processor"),
    [
        (FIXED, RTDetrImageProcessor(size={"height": 96, "width": 128})),
        (FREE, DetrImageProcessor(size={"shortest_edge": 96, "longest_edge": 160})),
    ],
    ids=["fixed", "free"],
)
def test_evaluation_sees_what_the_models_own_processor_makes(preprocessing, processor, size):
    image = photograph(*size)
    pixels, boxes, labels = eval_transform(preprocessing)(image, *NO_BOXES, seed=0)
    pixels = normalised(pixels, preprocessing)
    torch.testing.assert_close(pixels, processor(image, return_tensors="pt")["pixel_values"][0], atol=1e-5, rtol=0)
    assert boxes.shape == (0, 4)
    assert labels.shape == (0,)


def test_boxes_are_relative_to_the_view_and_cut_at_the_image():
    boxes = torch.tensor([[50.0, 30.0, 150.0, 90.0], [-20.0, -10.0, 100.0, 60.0]])
    _, relative, labels = eval_transform(FIXED)(photograph(), boxes, torch.tensor([4, 7]), seed=0)
    torch.testing.assert_close(relative, torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.25, 0.25, 0.5, 0.5]]))
    assert labels.tolist() == [4, 7]


def test_a_box_without_a_pixel_left_goes_with_its_label():
    boxes = torch.tensor([[10.0, 10.0, 11.0, 50.0], [10.0, 10.0, 90.0, 90.0]])
    _, relative, labels = eval_transform(FIXED)(photograph(), boxes, torch.tensor([0, 1]), seed=0)
    assert len(relative) == 1
    assert labels.tolist() == [1]


@pytest.mark.parametrize("preprocessing", [FIXED, FREE], ids=["fixed", "free"])
@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_boxes_stay_on_their_objects(preprocessing, augment):
    transform = train_transform(preprocessing, augment)
    views = set()
    for seed in range(20):
        pixels, boxes, labels = transform(*painted(), seed=seed)
        height, width = pixels.shape[-2:]
        views.add((height, width, *boxes.flatten().tolist()))
        assert (pixels.dtype, boxes.dtype) == (torch.uint8, torch.float32)
        corners = to_corners(boxes)
        assert ((corners > -1e-6) & (corners < 1 + 1e-6)).all()
        shown = pixels / 255
        for (x, y, _, _), label in zip(boxes, labels.tolist()):
            colour = shown[:, int(y * height), int(x * width)]
            assert colour.argmax() == label
            assert colour[label] > colour.median() + 0.3
    assert (len(views) == 1) == (augment == "none")


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_a_view_follows_from_its_seed_and_leaves_the_global_generator_alone(augment):
    transform = train_transform(FREE, augment)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = transform(*painted(), seed=2**64 - 1)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(3)
    again = transform(*painted(), seed=2**64 - 1)
    assert all(torch.equal(a, b) for a, b in zip(first, again))


@pytest.mark.parametrize("augment", AUGMENTATIONS)
@pytest.mark.parametrize("size", [(1, 1), (3, 400), (40, 30)])
def test_images_without_boxes_and_of_odd_sizes_pass(augment, size):
    for seed in range(4):
        pixels, boxes, _ = train_transform(FIXED, augment)(photograph(*size), *NO_BOXES, seed=seed)
        assert pixels.shape == (3, 96, 128)
        assert boxes.shape == (0, 4)


def test_detrs_lengths_are_scaled_to_the_model():
    transform = train_transform(Preprocessing(size=None, shortest_edge=400, longest_edge=666), "detr")
    shapes = [transform(photograph(480, 640), *NO_BOXES, seed=seed)[0].shape[1:] for seed in range(40)]
    assert {min(shape) for shape in shapes} <= set(range(240, 401, 16))
    assert max(max(shape) for shape in shapes) <= 666
    assert len({min(shape) for shape in shapes}) > 4
    assert len({round(w / h, 1) for h, w in shapes}) > 4  # the crops; without them every view is 4 : 3


def test_the_longest_edge_holds():
    assert resized((100, 1000), 100, 500) == (50, 500)
    assert resized((1000, 100), 100, 500) == (500, 50)
    assert resized((100, 1000), 100, None) == (100, 1000)


def test_an_unknown_augmentation_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'flip'"):
        train_transform(FIXED, "flipp")
