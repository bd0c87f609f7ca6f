"""Every scheme with weights and images that arithmetic does not like: finite answers, or one sentence."""

import pytest
import torch
from torch import nn

from leandetr.detectors.create import create
from leandetr.errors import UserError
from leandetr.quantization.config import SCHEMES, from_dict
from leandetr.quantization.quantize import quantize

pytestmark = pytest.mark.usefixtures("few_steps")

OPTIONS = {
    **{name: {"scheme": name} for name in SCHEMES},
    "weight-only, 4 bits": {"scheme": "weight-only", "bits": 4, "calibration_images": 2},
    "static, 4 bits, mse, attention": {"scheme": "static", "weight_bits": 4, "observer": "mse", "attention": True},
}
#: unified tries all others on every layer
BORNE = [pytest.param(name, marks=pytest.mark.slow) if name == "unified" else name for name in OPTIONS]
CALIBRATED = {"static", "static, 4 bits, mse, attention", "smoothquant", "unified", "low-bit", "weight-only, 4 bits"}


def scheme(name):
    options = dict(OPTIONS[name])
    if name in CALIBRATED:
        options["calibration_images"] = 2
    return from_dict(options)


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def detector(classes):
    torch.manual_seed(0)
    small = {"d_model": 32, "decoder_layers": 2, "num_queries": 6, "decoder_ffn_dim": 32, "encoder_layers": 1}
    return create("rt_detr_v2", classes, (64, 64), backbone="test_resnet", overrides=small).eval()


def batches(images):
    mask = torch.ones(len(images), *images.shape[2:], dtype=torch.int64)
    return [{"pixel_values": images, "pixel_mask": mask, "labels": []}]


def layers(detector, kind):
    return [layer for layer in detector.model.modules() if isinstance(layer, kind)]


def dead_layers_and_constant_channels(detector, images):
    for layer in layers(detector, nn.Linear)[::3]:
        nn.init.zeros_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    for layer in layers(detector, nn.Conv2d):
        nn.init.zeros_(layer.weight[::2])
    for norm in layers(detector, nn.BatchNorm2d):
        norm.running_var[::2] = 0
    return torch.cat([images[:1], torch.zeros_like(images[:1])])  # and a blank image


def one_bright_pixel(detector, images):
    images = torch.zeros_like(images)
    images[0, 0, 5, 5] = 1e4
    return images


def tiny_weights(detector, images):
    for layer in layers(detector, (nn.Linear, nn.Conv2d)):
        layer.weight.mul_(1e-30)
    return images


@pytest.mark.parametrize(
    "trouble", [dead_layers_and_constant_channels, one_bright_pixel, pytest.param(tiny_weights, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", BORNE)
def test_what_is_extreme_is_borne(detector, images, name, trouble):
    with torch.no_grad():
        shown = trouble(detector, images)
        answer = quantize(detector, scheme(name), batches(shown))(images)
    assert answer.logits.isfinite().all()
    assert answer.boxes.isfinite().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", OPTIONS)
def test_weights_and_images_that_are_not_finite_are_refused_in_a_sentence(detector, images, name, value):
    if name in CALIBRATED:
        broken = images.clone()
        broken[1, 2, 3, 4] = value
        with pytest.raises(UserError, match="calibration image has values that are not finite"):
            quantize(detector, scheme(name), batches(broken))
    with torch.no_grad():
        layers(detector, nn.Linear)[-1].weight[0, 0] = value
    with pytest.raises(UserError, match=r"weight of the model holds numbers that are not finite"):
        quantize(detector, scheme(name), batches(images))


@pytest.mark.parametrize("name", ["static", *(pytest.param(name, marks=pytest.mark.slow) for name in OPTIONS)])
def test_activations_that_overflow_are_refused_where_they_are_seen(detector, images, name):
    """Finite weights whose products are not."""
    with torch.no_grad():
        layers(detector, nn.Conv2d)[-1].weight.mul_(1e38)
        layers(detector, nn.Linear)[0].weight.mul_(1e38)
        if name in CALIBRATED:
            with pytest.raises(UserError, match="not finite"):
                quantize(detector, scheme(name), batches(images))
        else:
            quantize(detector, scheme(name))
