"""A view from decoded pixels has the bits of one from the file, in any process; what they take is said, or refused."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from leandetr.data import decoded
from leandetr.data.batches import Loader
from leandetr.data.coco import CocoDataset, find_split
from leandetr.data.shapes import write_shapes
from leandetr.data.transforms import AUGMENTATIONS, train_transform
from leandetr.errors import UserError
from leandetr.structures import Preprocessing


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """Images of which one is grey, one turned by its EXIF, and one larger than its annotations say."""
    found = find_split(write_shapes(tmp_path_factory.mktemp("data") / "data", 5, 1, (64, 88)), "train")
    first, second, third, *_ = sorted(found.images.iterdir())
    Image.open(first).convert("L").save(first)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(second).transpose(Image.Transpose.ROTATE_90).save(second, exif=exif)
    Image.open(third).resize((176, 128)).save(third)
    return found


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.mark.parametrize("place", ["memory", "disk"])
@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_the_bits_of_every_view_are_those_of_the_file(split, place, augment, monkeypatch, capsys):
    sets = [CocoDataset(split, train_transform(Preprocessing(size=(48, 48)), augment)) for _ in range(2)]
    sets[1].keep_decoded(place)
    assert "the decoded pixels of 5 images take 0.1 MB in" in " ".join(capsys.readouterr().err.split())
    expected = list(Loader(sets[0], 2))
    monkeypatch.setattr("leandetr.data.coco.read_pixels", None)
    for workers in (0, 2):
        for mine, theirs in zip(expected, Loader(sets[1], 2, workers), strict=True):
            assert torch.equal(mine["pixel_values"], theirs["pixel_values"])
            assert all(torch.equal(a["boxes"], b["boxes"]) for a, b in zip(mine["labels"], theirs["labels"], strict=True))


def test_a_file_on_disk_is_read_again_until_an_image_changes(split, tmp_path, monkeypatch, capsys):
    dataset = CocoDataset(split, train_transform(Preprocessing(size=(48, 48)), "none"))
    dataset.keep_decoded("disk")
    with monkeypatch.context() as patch:
        patch.setattr(decoded, "read_pixels", None)
        dataset.keep_decoded("disk")
    assert "where they are already" in " ".join(capsys.readouterr().err.split())
    path = dataset.path(4)
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    os.utime(path, (1, 1))
    before = dataset.view(4, 0)[0]
    dataset.keep_decoded("disk")
    assert not torch.equal(dataset.view(4, 0)[0], before)
    assert len(list(tmp_path.rglob("*.pixels"))) == 2


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        ("memory", "0.1 MB in memory, and 0.0 MB are free; set it to disk"),
        ("disk", r"pixels, and 0\.0 MB are free; set it to"),
    ],
)
def test_more_than_is_free_is_refused(split, monkeypatch, place, sentence):
    class Full:
        available = free = 7

    monkeypatch.setattr(decoded.psutil, "virtual_memory", Full)
    monkeypatch.setattr(decoded.shutil, "disk_usage", lambda _: Full)
    with pytest.raises(UserError, match=sentence):
        CocoDataset(split, train_transform(Preprocessing(size=(48, 48)), "none")).keep_decoded(place)
