"""Views are, to the last bit, those that torchvision makes of whole images, in any process and number of workers."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Subset
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from leandetr.data.batches import Loader, collate, pack, unpack
from leandetr.data.coco import CocoDataset, find_split
from leandetr.data.images import read_image, read_pixels
from leandetr.data.transforms import eval_transform, normalised, train_transform
from leandetr.data.views import resized
from leandetr.structures import Preprocessing

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
FIXED = Preprocessing(size=(101, 131), **IMAGENET)
SQUARE = Preprocessing(size=(160, 160))
FREE = Preprocessing(size=None, shortest_edge=96, longest_edge=150, **IMAGENET)


class ShorterSide(v2.Transform):
    def __init__(self, sides, longest):
        super().__init__()
        self.sides, self.longest = sides, longest

    def make_params(self, flat_inputs):
        side = self.sides[int(torch.randint(len(self.sides), ()))]
        return {"size": list(resized(v2.query_size(flat_inputs), side, self.longest))}

    def transform(self, inpt, params):
        return self._call_kernel(F.resize, inpt, size=params["size"], antialias=True)


class SizeCrop(v2.Transform):
    def __init__(self, smallest, largest):
        super().__init__()
        self.smallest, self.largest = smallest, largest

    def make_params(self, flat_inputs):
        spans = []
        for side in v2.query_size(flat_inputs):
            length = int(torch.randint(min(self.smallest, side), min(self.largest, side) + 1, ()))
            spans.append((int(torch.randint(side - length + 1, ())), length))
        return {"top": spans[0][0], "left": spans[1][0], "height": spans[0][1], "width": spans[1][1]}

    def transform(self, inpt, params):
        return self._call_kernel(F.crop, inpt, **params)


class IoUCrop(v2.RandomIoUCrop):
    def make_params(self, flat_inputs):
        return super().make_params(flat_inputs) if len(v2.get_bounding_boxes(flat_inputs)) else {}


def plain_steps(preprocessing, augment):
    side = min(preprocessing.size) if preprocessing.size else preprocessing.shortest_edge
    longest, flip = preprocessing.longest_edge, v2.RandomHorizontalFlip()
    resize = v2.Resize(list(preprocessing.size), antialias=True) if preprocessing.size else ShorterSide([side], longest)
    if augment == "ssd":
        zoom = v2.RandomZoomOut(
            fill={tv_tensors.Image: [round(255 * m) for m in preprocessing.mean]}, side_range=(1.0, 2.0), p=0.5
        )
        jitter = v2.ColorJitter(brightness=0.125, contrast=0.3, saturation=0.3)
        return [zoom, v2.RandomApply([IoUCrop()], p=0.8), flip, resize, jitter]
    if augment == "detr":
        before, crop, sides = (
            [max(1, round(length * side / 800)) for length in lengths]
            for lengths in ((400, 500, 600), (384, 600), range(480, 801, 32))
        )
        last = resize if preprocessing.size else ShorterSide(sides, longest)
        return [flip, v2.RandomApply([v2.Compose([ShorterSide(before, None), SizeCrop(*crop)])], p=0.5), last]
    return [flip, resize] if augment == "flip" else [resize]


def plain_view(image, boxes, labels, seed, preprocessing, augment):
    """A view as torchvision makes it, each step on all pixels."""
    boxes = F.clamp_bounding_boxes(tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(image.height, image.width)))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        pixels, boxes = v2.Compose(plain_steps(preprocessing, augment))(F.to_image(image), boxes)
    pixels = F.to_dtype(pixels, torch.float32, scale=True)
    pixels = F.normalize(pixels, list(preprocessing.mean), list(preprocessing.std)).as_subclass(torch.Tensor)
    boxes, left = F.sanitize_bounding_boxes(F.clamp_bounding_boxes(boxes), min_size=1)
    height, width = pixels.shape[-2:]
    centred = F.convert_bounding_box_format(boxes, new_format="CXCYWH").as_subclass(torch.Tensor)
    return pixels, centred.float() / torch.tensor([width, height, width, height]).float(), labels[left]


@pytest.mark.parametrize("augment", ["none", "flip", "detr", "ssd"])
@pytest.mark.parametrize("preprocessing", [FIXED, SQUARE, FREE], ids=["fixed", "square", "free"])
def test_views_are_torchvisions_to_the_last_bit(preprocessing, augment):
    generator = np.random.default_rng(0)
    transform = train_transform(preprocessing, augment)
    for seed in range(16):
        height, width = generator.integers(60, 220, 2).tolist()
        noise = generator.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
        image = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
        corners = torch.from_numpy(generator.random((seed % 5, 2)) * 0.8)
        size = torch.tensor([width, height] * 2)
        boxes = torch.cat([corners, corners + torch.from_numpy(generator.random((seed % 5, 2))) * 0.4], 1) * size
        labels = torch.arange(len(boxes))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        expected = plain_view(image, boxes, labels, seed, preprocessing, augment)
        found = transform(pixels, boxes, labels, seed)
        assert all(torch.equal(a, b) for a, b in zip(expected, (normalised(found[0], preprocessing), *found[1:]), strict=True))


@pytest.mark.parametrize(
    "options",
    [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 20}, {"optimize": True, "restart_marker_blocks": 4}],
    ids=str,
)
def test_photographs_are_decoded_to_the_same_pixels(tmp_path, options):
    noise = np.random.default_rng(0).integers(0, 256, (30, 41, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((333, 251), Image.Resampling.BICUBIC).save(tmp_path / "a.jpg", **options)
    assert np.array_equal(read_pixels(tmp_path / "a.jpg").permute(1, 2, 0).numpy(), np.asarray(read_image(tmp_path / "a.jpg")))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_so_are_those_that_need_more_than_decoding(tmp_path, mode, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.effect_noise((40, 30), 90).convert(mode).save(tmp_path / "a.jpg", exif=exif)
    assert np.array_equal(read_pixels(tmp_path / "a.jpg").permute(1, 2, 0).numpy(), np.asarray(read_image(tmp_path / "a.jpg")))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_views_of_photographs_are_the_plain_ones_in_any_number_of_workers(shared, workers):
    split = find_split(shared / "data/coco_person", "train")
    dataset = CocoDataset(split, train_transform(SQUARE, "ssd"), seed=7)
    dataset.set_epoch(3)
    indices = [5, 0, 9, 31]
    batches = list(Loader(Subset(dataset, indices), batch_size=2, workers=workers))
    found = [(image, target) for batch in batches for image, target in zip(batch["pixel_values"], batch["labels"], strict=True)]
    for index, (image, target) in zip(indices, found, strict=True):
        mine = slice(dataset.annotations.first[index], dataset.annotations.first[index + 1])
        objects = ~dataset.annotations.crowd[mine]
        boxes = torch.from_numpy(dataset.annotations.boxes[mine][objects].copy())
        boxes[:, 2:] += boxes[:, :2]
        parts = [7, 3, int(dataset.image_ids[index])]
        seed = int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])
        labels = torch.from_numpy(dataset.annotations.labels[mine][objects])
        expected = plain_view(dataset.load_image(index), boxes, labels, seed, SQUARE, "ssd")
        assert all(torch.equal(a, b) for a, b in zip(expected, (image, target["boxes"], target["class_labels"]), strict=True))


def test_a_packed_batch_becomes_what_collate_makes(shared):
    dataset = CocoDataset(find_split(shared / "data/coco_person", "val"), eval_transform(FREE))
    packed = pack([dataset.stored(index) for index in range(3)])
    assert packed["pixels"].dtype == torch.uint8
    found, expected = unpack(packed, FREE), collate([dataset[index] for index in range(3)])
    assert found["padded"] is expected["padded"] is True
    for name in ("pixel_values", "pixel_mask"):
        assert torch.equal(found[name], expected[name])
    for own, plain in zip(found["labels"], (dataset[index][1] for index in range(3)), strict=True):
        assert own.keys() == plain.keys()
        assert all(torch.equal(own[name], plain[name]) for name in plain)
    # each image alone, so that what padding is cannot be the same mistake twice
    for image, mask, index in zip(found["pixel_values"], found["pixel_mask"], range(3), strict=True):
        alone, _ = dataset[index]
        assert torch.equal(image[:, : alone.shape[1], : alone.shape[2]], alone)
        assert int(mask.sum()) == alone.shape[1] * alone.shape[2]
        assert image.abs().sum() == pytest.approx(alone.abs().sum().item(), rel=1e-5)
