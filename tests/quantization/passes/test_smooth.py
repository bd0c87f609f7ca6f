"""SmoothQuant: the float function stays, 1/s goes where it may, and outlying channels cost less."""

import pytest
import torch
from torch import Tensor, nn

from leandetr.quantization import SmoothQuant, quantize
from leandetr.quantization.grids import grid_of
from leandetr.quantization.layers.modules import LayerPlan, QuantizedLinear, quantized_layer
from leandetr.quantization.passes.smooth import smooth


class Blocks(nn.Module):
    """A norm read by two layers alone; a norm read by a layer and a shortcut; a layer behind a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(16), nn.LayerNorm(16)
        self.q, self.k = nn.Linear(16, 8), nn.Linear(16, 8, bias=False)
        self.fc1, self.fc2 = nn.Linear(16, 24), nn.Linear(24, 16)
        self.summed, self.idle = nn.Linear(16, 4), nn.Linear(4, 4)
        with torch.no_grad():
            for norm in (self.first, self.second):
                norm.weight.copy_(torch.cat([torch.full((2,), 40.0), torch.rand(14) + 0.5]))
                norm.bias.normal_()

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor) -> Tensor:
        x = self.first(pixel_values)
        x = torch.cat([self.q(x), self.k(x)], -1)
        x = self.second(x)
        x = x + self.fc2(self.fc1(x).relu())
        return self.summed(x + pixel_mask)


@pytest.fixture
def blocks():
    torch.manual_seed(0)
    return Blocks().eval()


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(4, 9, 16, generator=generator), torch.randn(16, generator=generator)) for _ in range(3)]


def smoothed(model: Blocks, images, **options):
    settings = {layer: SmoothQuant(**options) for layer in model.modules() if isinstance(layer, nn.Linear)}
    return smooth(model, settings, lambda: model(*images[0]), images)


@pytest.mark.parametrize("alpha", [0, 0.5, 1, "auto"])
@pytest.mark.parametrize("activations", ["float", "static"])
def test_the_float_function_stays_and_only_a_norm_of_such_layers_alone_is_changed(blocks, images, alpha, activations):
    with torch.no_grad():
        before = blocks(*images[0])
    norms = blocks.first.weight.clone(), blocks.second.weight.clone()
    factors = smoothed(blocks, images, alpha=alpha, activations=activations)
    with torch.no_grad():
        torch.testing.assert_close(blocks(*images[0]), before, rtol=1e-5, atol=1e-5)
    assert set(factors) <= {blocks.fc1, blocks.fc2, blocks.summed}
    torch.testing.assert_close(blocks.second.weight, norms[1])
    if alpha != "auto":
        assert set(factors) == {blocks.fc1, blocks.fc2, blocks.summed}
        assert not torch.allclose(blocks.first.weight, norms[0])


def test_s_is_that_of_the_equation(blocks, images):
    weights = blocks.fc1.weight.detach().clone()
    seen = []
    blocks.fc1.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].detach().abs().flatten(0, -2)))
    with torch.no_grad():
        for image in images:
            blocks(*image)
    scale = torch.cat(seen).amax(0) ** 0.7 / weights.abs().amax(0) ** 0.3
    factors = smoothed(blocks, images, alpha=0.7)
    torch.testing.assert_close(factors[blocks.fc1], 1 / scale, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(blocks.fc1.weight, weights * scale, rtol=1e-4, atol=1e-6)


def test_outlying_channels_cost_less_and_auto_no_more_than_none(blocks, images):
    x = torch.cat([blocks.second(image) for image, _ in images]).detach()
    exact = blocks.fc1(x).detach()
    errors = {}
    for name, alpha in (("none", None), ("half", 0.5), ("auto", "auto")):
        torch.manual_seed(0)
        model = Blocks().eval()
        factors = {} if alpha is None else smoothed(model, images, alpha=alpha, activations="static")
        factor = factors.get(model.fc1, torch.ones(16))
        layer = quantized_layer(model.fc1, LayerPlan(input="grid", input_bits=8, smoothed=True))
        layer.input_factor.copy_(factor)
        layer.input.set(*grid_of((x * factor).min().item(), (x * factor).max().item(), 8))
        layer.fill(model.fc1)
        errors[name] = (layer(x) - exact).square().mean().item()
    assert errors["half"] < errors["none"]
    assert errors["auto"] < 1.1 * min(errors.values())


@pytest.mark.parametrize("activations", ["float", "dynamic", "static"])
def test_a_smoothed_detector_is_saved_and_close_to_float(tiny_detector, tmp_path, activations):
    from leandetr.detectors.checkpoints.load import load

    detector = tiny_detector("detr", backbone="test_resnet")
    images = torch.randn(4, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    batches = [{"pixel_values": images, "pixel_mask": torch.ones(4, 128, 128, dtype=torch.int64)}]
    quantized = quantize(detector, SmoothQuant(activations=activations, alpha="auto", calibration_images=4), batches)
    layers = [module for module in quantized.modules() if isinstance(module, QuantizedLinear)]
    assert any(layer.plan.smoothed for layer in layers)
    assert {layer.plan.input for layer in layers if layer.plan.smoothed} == {{"static": "grid"}.get(activations, activations)}
    quantized.save(tmp_path / "quantized")
    with torch.no_grad():
        ours, theirs, exact = quantized(images), load(tmp_path / "quantized")(images), detector(images)
    torch.testing.assert_close(theirs.logits, ours.logits, rtol=0, atol=0)
    torch.testing.assert_close(ours.boxes, exact.boxes, rtol=0, atol=0.05)
