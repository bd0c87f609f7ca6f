"""What preprocessing promises: either library reads what the other wrote, and both make the same pixel values."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from leandetr.data.images import pixels_of
from leandetr.data.transforms import eval_transform, normalised
from leandetr.detectors.preprocessing import read_preprocessing, write_preprocessing
from leandetr.errors import UserError
from leandetr.heads import Head
from leandetr.structures import Preprocessing

FIXED = Preprocessing(size=(64, 96), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
SHORTEST = Preprocessing(size=None, shortest_edge=48, longest_edge=80, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def model_input(image, preprocessing):
    transform = eval_transform(preprocessing)
    pixels, *_ = transform(pixels_of(image), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), 0)
    return normalised(pixels, preprocessing)


@pytest.mark.parametrize("head", Head)
@pytest.mark.parametrize("preprocessing", [FIXED, SHORTEST], ids=["fixed", "shortest edge"])
def test_round_trip_and_the_same_pixels_as_transformers(tmp_path, preprocessing, head):
    write_preprocessing(tmp_path, preprocessing, head)
    assert read_preprocessing(str(tmp_path)) == preprocessing
    smooth = np.linspace(0, 255, 60 * 120 * 3).reshape(60, 120, 3).astype(np.uint8)
    theirs = AutoImageProcessor.from_pretrained(tmp_path)(Image.fromarray(smooth), return_tensors="pt")["pixel_values"][0]
    ours = model_input(Image.fromarray(smooth), preprocessing)
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().mean() < 0.02


SETTINGS = {
    "nearest": {"resample": 0},
    "bicubic": {"resample": 3},
    "bytes": {"do_rescale": False},
    "another factor": {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3},
    "not normalised": {"do_normalize": False},
    "neither scaled nor normalised": {"do_rescale": False, "do_normalize": False},
    "two of them": {"resample": 3, "do_rescale": False, "image_mean": [120.0, 110.0, 100.0], "image_std": [60.0] * 3},
    "sides as a list": {"size": [64, 96]},
    "shorter side": {"size": {"shortest_edge": 70, "longest_edge": 90}, "do_pad": False},
    "the class's defaults": {"size": {"height": 64, "width": 96}, "image_processor_type": "RTDetrImageProcessor"},
    "an older name": {"feature_extractor_type": "DetrFeatureExtractor", "size": 64, "max_size": 80},
    "not antialiased": {"image_processor_type": "RfDetrImageProcessor"},
    "not antialiased, bicubic": {"image_processor_type": "RfDetrImageProcessor", "resample": 3},
}


@pytest.mark.parametrize("values", SETTINGS.values(), ids=SETTINGS)
def test_every_setting_makes_the_pixels_that_transformers_makes(tmp_path, shared, values):
    """Of a photograph, as it was read and as it was written again."""
    values = {"image_processor_type": "DetrImageProcessor", "size": {"height": 64, "width": 96}} | values
    if "feature_extractor_type" in values:
        del values["image_processor_type"]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    photograph = Image.open(sorted((shared / "data/bccd/val").glob("*.jpg"))[0])
    theirs = AutoImageProcessor.from_pretrained(tmp_path)(photograph, return_tensors="pt")["pixel_values"][0].float()
    read = read_preprocessing(str(tmp_path))
    write_preprocessing(tmp_path, read, Head.SIGMOID)
    assert read_preprocessing(str(tmp_path)) == read
    again = AutoImageProcessor.from_pretrained(tmp_path)(photograph, return_tensors="pt")["pixel_values"][0]
    ours = model_input(photograph, read)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(again, theirs, rtol=1e-4, atol=1e-4)


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


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": {"longest_edge": 100}}, "size .*longest_edge.* is neither height and width"),
        ({"size": {"max_height": 100, "max_width": 100}}, "size .*max_height.* is neither height and width"),
        ({"resample": 1}, r"resample 1 \(Lanczos\) is not done here; give 0"),
        ({"do_resize": False}, "do_resize is false"),
        ({"do_center_crop": True, "crop_size": 224}, "do_center_crop is not done here"),
        ({"do_flip_channel_order": True}, "do_flip_channel_order is not done here"),
        ({"pad_size": {"height": 100, "width": 100}}, "pad_size pads images to a fixed size"),
        ({"image_mean": [0.5]}, r"image_mean is \[0.5\]; give a number for red, green and blue each"),
        ({"image_processor_type": "BertModel"}, "image_processor_type .BertModel. is not one"),
    ],
)
def test_what_is_not_done_here_is_refused_by_its_key(tmp_path, values, message):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=rf"preprocessor_config.json: {message}"):
        read_preprocessing(str(tmp_path))


def test_a_file_without_its_processors_name_is_taken_as_detrs_and_that_is_said(tmp_path, caplog):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"do_normalize": False}))
    assert read_preprocessing(str(tmp_path)) == Preprocessing(None, 800, 1333)
    assert "names no image_processor_type: DETR's defaults serve for size, resample" in caplog.text
