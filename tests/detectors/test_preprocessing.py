"""What preprocessing promises: either library reads what the other wrote, and both make the same pixel values."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from leandetr.data.transforms import eval_transform
from leandetr.detectors.preprocessing import read_preprocessing, write_preprocessing
from leandetr.errors import UserError
from leandetr.heads import Head
from leandetr.structures import Preprocessing

FIXED = Preprocessing(size=(64, 96), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
SHORTEST = Preprocessing(size=None, shortest_edge=48, longest_edge=80, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


@pytest.mark.parametrize("head", Head)
@pytest.mark.parametrize("preprocessing", [FIXED, SHORTEST], ids=["fixed", "shortest edge"])
def test_round_trip_and_the_same_pixels_as_transformers(tmp_path, preprocessing, head):
    write_preprocessing(tmp_path, preprocessing, head)
    assert read_preprocessing(str(tmp_path)) == preprocessing
    smooth = np.linspace(0, 255, 60 * 120 * 3).reshape(60, 120, 3).astype(np.uint8)
    theirs = AutoImageProcessor.from_pretrained(tmp_path)(Image.fromarray(smooth), return_tensors="pt")["pixel_values"][0]
    ours, *_ = eval_transform(preprocessing)(Image.fromarray(smooth), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), 0)
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().mean() < 0.02


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"size": 800, "max_size": 1333}, Preprocessing(None, 800, 1333, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))),
        ({"size": {"height": 64, "width": 32}, "do_normalize": False}, Preprocessing((64, 32))),
        (
            {"size": {"shortest_edge": 32}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
            Preprocessing(None, 32, None, (0.5,) * 3, (0.5,) * 3),
        ),
    ],
)
def test_what_transformers_processors_of_all_ages_say(tmp_path, values, expected):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    assert read_preprocessing(str(tmp_path)) == expected


def test_a_size_that_cannot_be_understood(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": {"longest_edge": 100}}))
    with pytest.raises(UserError, match=r"preprocessor_config.json: size .*longest_edge.* is neither height and width"):
        read_preprocessing(str(tmp_path))
