"""Schemes by name, and which setting a layer gets."""

from dataclasses import replace

import pytest

from leandetr.errors import UserError
from leandetr.quantization.config import Dynamic, Static, WeightOnly, from_dict, scheme_config


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["model.encoder.layers.0.mlp.fc1"], Dynamic()),
        (["model.decoder.layers.0.mlp.fc1"], WeightOnly()),
        (["model.decoder.layers.1.mlp.fc1"], None),
        (["class_labels_classifier"], WeightOnly()),
        (["bbox_predictor.layers.0"], Static(observer="mse")),
        (["model.backbone.conv", "alias"], None),
    ],
    ids=["own", "override", "later override", "default exception", "override of an exception", "second name"],
)
def test_the_last_pattern_that_matches_counts(names, expected):
    scheme = Dynamic(
        overrides={
            "model.decoder.*": "weight-only",
            "*.layers.1.*": "float",
            "bbox_predictor*": {"scheme": "static", "observer": "mse"},
            "alias": "float",
        }
    )
    found, _ = scheme.setting(names)
    assert (found and replace(found, overrides={})) == expected


def test_the_own_name_in_an_override_means_the_own_options():
    scheme = Static(weight_bits=4, calibration_images=7, overrides={"*": "float", "model.encoder.*": "static"})
    assert scheme.setting(["model.encoder.fc1"])[0] == Static(weight_bits=4, calibration_images=7)
    assert scheme.setting(["model.decoder.fc1"])[0] is None


@pytest.mark.parametrize(
    "scheme", [WeightOnly(), Dynamic(overrides={"*": "float"}), Static(percentile=99.0, overrides={"a": Static(weight_bits=2)})]
)
def test_a_scheme_survives_being_written_as_plain_values(scheme):
    assert from_dict(scheme.to_dict()) == scheme


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: scheme_config("static", weight_bits=1), "weight_bits is 1; give 2 to 8"),
        (lambda: WeightOnly(bits=9), "bits is 9; give 2 to 8"),
        (lambda: WeightOnly(bits=4, group_size=48), "group_size is 48; give 32, 64, 128"),
        (lambda: WeightOnly(bits=4, calibration_images=-1), "calibration_images is -1"),
        (lambda: Static(activation_bits=16), "activation_bits is 16; give 2 to 8"),
        (lambda: Static(observer="mean"), "observer 'mean'"),
        (lambda: Static(percentile=5), "percentile is 5"),
        (lambda: Static(percentile="most"), "static: percentile is 'most'; give a number"),
        (lambda: Static(observer=5), "static: observer is 5; give a word"),
        (lambda: Static(weight_bits=4.5), "static: weight_bits is 4.5; give a whole number"),
        (lambda: Static(overrides="float"), "static: overrides is 'float'; give names with their values"),
        (lambda: WeightOnly(bits="4-4-8"), "weight-only: bits is '4-4-8'; give a whole number"),
        (lambda: Dynamic(per_row=1), "dynamic: per_row is 1; give true or false"),
        (lambda: scheme_config("unified", tolerance="low"), "unified: tolerance is 'low'; give a number or nothing"),
        (lambda: scheme_config("low-bit", attention={"q": 4.5}), "low-bit: attention is {'q': 4.5}"),
        (lambda: Static(calibration_images=0), "calibration_images is 0"),
        (lambda: WeightOnly(overrides={"a": "flaot"}), "did you mean 'float'"),
        (lambda: WeightOnly(overrides={"a": 8}), "override a: 8 is no setting"),
        (lambda: WeightOnly(overrides={"a": WeightOnly(overrides={"b": "float"})}), "cannot hold overrides"),
        (lambda: from_dict({"observer": "mse"}), "lacks the key scheme"),
    ],
)
def test_a_value_out_of_range_is_one_sentence(make, says):
    with pytest.raises(UserError, match=says):
        make()
