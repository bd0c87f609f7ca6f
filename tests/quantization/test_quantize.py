"""What `quantize` promises: the float model untouched, integers in the layers, the same answers after loading."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForObjectDetection

from leandetr.detectors.checkpoints.load import load
from leandetr.errors import UserError
from leandetr.quantization import Dynamic, Static, WeightOnly, quantize, scheme_config
from leandetr.quantization.layers.folded import Nothing
from leandetr.quantization.layers.modules import QuantizedLayer
from leandetr.quantization.layers.operators import dequantize, fake_quantize
from leandetr.quantization.passes.fold import fold_batch_norms, is_norm, merge_parallel

pytestmark = pytest.mark.usefixtures("few_steps")

SCHEMES = {
    "weight-only": WeightOnly(),
    "4 bits": WeightOnly(bits=4, group_size=32, calibration_images=0),
    "4 bits, calibrated": WeightOnly(bits=4, calibration_images=4),
    "dynamic": Dynamic(),
    "static": Static(calibration_images=4),
    "static, 3 bits": Static(weight_bits=3, calibration_images=4),
}


@pytest.fixture
def images():
    return torch.randn(4, 3, 128, 128, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def batches(images, labels):
    mask = torch.ones(4, 128, 128, dtype=torch.int64)
    return [{"pixel_values": images, "pixel_mask": mask, "labels": labels(1, 2, 0, 3)}]


def answers(detector, images):
    with torch.no_grad():
        return detector(images)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["detr", "rt_detr_v2"])
def test_saved_equals_loaded_and_the_float_model_is_left_alone(tiny_detector, images, batches, tmp_path, name, scheme):
    detector = tiny_detector(name, backbone="test_resnet")
    before = answers(detector, images).logits
    quantized = quantize(detector, SCHEMES[scheme], batches)
    torch.testing.assert_close(answers(detector, images).logits, before, rtol=0, atol=0)
    quantized.save(tmp_path / "quantized")
    ours = answers(quantized, images)
    theirs = answers(load(tmp_path / "quantized"), images)
    torch.testing.assert_close(theirs.logits, ours.logits, rtol=0, atol=0)
    torch.testing.assert_close(theirs.boxes, ours.boxes, rtol=0, atol=0)
    plain = AutoModelForObjectDetection.from_pretrained(tmp_path / "quantized").eval()
    with torch.no_grad():
        torch.testing.assert_close(plain(pixel_values=images).logits, ours.logits[-1], rtol=0, atol=0)


@pytest.mark.parametrize("scheme", ["dynamic", "static"])
def test_layers_hold_int8_and_the_heads_compute_in_float(tiny_detector, batches, scheme):
    quantized = quantize(tiny_detector("detr"), SCHEMES[scheme], batches)
    layers = {name: module for name, module in quantized.model.named_modules() if isinstance(module, QuantizedLayer)}
    assert layers
    assert all(layer.weight.dtype == torch.int8 for layer in layers.values())
    heads = {name for name in layers if "class_labels_classifier" in name or "bbox_predictor" in name}
    assert {layers[name].plan.input for name in heads} == {"float"}
    record = quantized.config.quantization_config
    assert set(record.as_asked) == layers.keys() - heads
    assert "8-bit weights in float arithmetic, class head" in record.summary()


def test_layers_hold_4_bits_and_the_heads_8(tiny_detector):
    detector = tiny_detector("rt_detr_v2", backbone="test_resnet")
    quantized = quantize(detector, WeightOnly(bits=4, calibration_images=0))
    record = quantized.config.quantization_config
    layers = {name: module for name, module in quantized.model.named_modules() if isinstance(module, QuantizedLayer)}
    for name, layer in layers.items():
        bits = 8 if name in record.kept_wide else 4
        assert layer.weight.nbytes == detector.model.get_submodule(name).weight.numel() * bits // 8
    assert record.kept_wide["class_embed.0" if "class_embed.0" in layers else "model.decoder.class_embed.0"] == "class head"
    assert any("3 inputs have no group" in reason for reason in record.kept_wide.values())
    assert "8-bit weights in float arithmetic, box head" in record.summary()
    assert not any(isinstance(module, nn.Linear) for module in quantized.model.modules())


def test_weights_are_the_nearest_multiples_of_the_largest_weight_of_their_channel(tiny_detector):
    detector = tiny_detector("detr")
    quantized = quantize(detector, WeightOnly())
    name, layer = next((n, m) for n, m in quantized.model.named_modules() if isinstance(m, QuantizedLayer) and "decoder" in n)
    weight = detector.model.get_submodule(name).weight.detach()
    scale = weight.abs().amax(1) / 127
    torch.testing.assert_close(layer.weight, torch.round(weight / scale[:, None]).to(torch.int8), rtol=0, atol=1)
    torch.testing.assert_close(dequantize(layer.weight, layer.weight_scale), weight, rtol=0, atol=float(scale.max()) * 0.51)


def test_fake_quantization_is_the_rounding_to_the_grid_and_clamps():
    x = torch.linspace(-2, 9, 200)
    scale, zero = torch.tensor(0.05), torch.tensor(20, dtype=torch.uint8)
    plain = torch.tensor([(min(max(round(float(v) / 0.05) + 20, 0), 127) - 20) * 0.05 for v in x])
    difference = (fake_quantize(x, scale, zero, 0, 127) - plain).abs()
    assert (difference < 1e-5).float().mean() > 0.98  # halves may round to either side in float32 and in float64
    assert difference.max() < 0.051


@pytest.mark.parametrize(("low", "high"), [(0.0, 3.0), (-2.0, 1.0)])
def test_16_bits_are_the_identity(low, high):
    x = torch.rand(1000, generator=torch.Generator().manual_seed(0)) * (high - low) + low
    scale = torch.tensor((high - low) / (2**16 - 1))
    zero = torch.round(-low / scale).int()
    torch.testing.assert_close(fake_quantize(x, scale, zero, 0, 2**16 - 1), x, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["rt_detr_v2", "d_fine"])
def test_merging_parallel_convolutions_leaves_the_function_as_it_was(tiny_detector, images, name):
    detector = tiny_detector(name)
    for norm in (module for module in detector.modules() if is_norm(module)):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    with torch.no_grad():
        before = detector.model(pixel_values=images).encoder_last_hidden_state
        fold_batch_norms(detector.model, lambda: detector.model(pixel_values=images[:1]))
        merges = merge_parallel(detector.model)
        after = detector.model(pixel_values=images).encoder_last_hidden_state
    assert merges
    assert all(isinstance(detector.model.get_submodule(branch), Nothing) for branch in merges)
    for ours, theirs in zip(after, before):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_blocks_whose_norms_could_not_be_folded_stay(tiny_detector):
    assert not merge_parallel(tiny_detector("rt_detr_v2").model)


def test_folding_batch_norm_leaves_the_function_as_it_was(tiny_detector, images):
    detector = tiny_detector("rt_detr_v2")
    for norm in (module for module in detector.modules() if is_norm(module)):
        generator = torch.Generator().manual_seed(1)
        norm.running_mean.copy_(torch.randn(norm.running_mean.shape, generator=generator) * 0.1)
        norm.running_var.copy_(torch.rand(norm.running_var.shape, generator=generator) + 0.5)
    with torch.no_grad():
        before = detector.model.model.backbone(images, torch.ones(4, 128, 128))
        folds = fold_batch_norms(detector.model, lambda: detector.model(pixel_values=images[:1]))
        after = detector.model.model.backbone(images, torch.ones(4, 128, 128))
    assert len(folds) > 10
    for (first, _), (second, _) in zip(before, after, strict=True):
        torch.testing.assert_close(second, first, rtol=1e-4, atol=1e-4)


def test_an_override_keeps_layers_float(tiny_detector):
    quantized = quantize(tiny_detector("detr"), WeightOnly(overrides={"model.decoder.*": "float"}))
    names = [name for name, module in quantized.model.named_modules() if isinstance(module, QuantizedLayer)]
    assert names
    assert not any(name.startswith("model.decoder.") for name in names)


@pytest.mark.parametrize("name", ["deformable_detr_refine", "rt_detr_v2"])
def test_heads_that_layers_share_survive_saving_when_an_override_quantizes_them(tiny_detector, images, tmp_path, name):
    quantized = quantize(
        tiny_detector(name, "resnet18"), WeightOnly(overrides={"*class_embed*": "weight-only", "*bbox_embed*": "weight-only"})
    )
    assert isinstance(quantized.model.class_embed[0], QuantizedLayer)
    quantized.save(tmp_path / "quantized")
    ours, theirs = answers(quantized, images), answers(load(tmp_path / "quantized"), images)
    torch.testing.assert_close(theirs.logits, ours.logits, rtol=0, atol=0)
    torch.testing.assert_close(theirs.boxes, ours.boxes, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["detr", "conditional_detr", "deformable_detr", "rt_detr", "rt_detr_v2"])
def test_every_layer_with_weights_is_quantized_or_reported(tiny_detector, batches, name):
    detector = tiny_detector(name)
    detector.model.spare = nn.Linear(4, 4)
    record = quantize(detector, Static(calibration_images=2), batches).config.quantization_config
    layers = {name for name, module in detector.model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    merged = {layer for layer in layers if any(layer.startswith(f"{branch}.") for branch in record.merges)}
    assert layers - merged <= record.layers.keys() | record.left_float.keys()
    assert not record.layers.keys() & record.left_float.keys()
    assert record.left_float["spare"] == "does not run on images"
    assert len(record.layers) > 2 * len(record.left_float) or name.startswith("deformable")


def test_no_more_images_are_read_than_asked(tiny_detector, batches):
    read = []

    def stream():
        for _ in range(5):
            read.append(1)
            yield batches[0]

    quantize(tiny_detector("detr"), Static(calibration_images=6), stream())
    assert len(read) == 2


def black() -> dict[str, torch.Tensor]:
    """Black photographs as a detector sees them: another number in every channel, and padding."""
    mask = torch.ones(4, 128, 128, dtype=torch.int64)
    mask[:, 96:] = 0
    return {"pixel_values": torch.tensor([-2.1, -2.0, -1.8])[:, None, None] * mask[:, None], "pixel_mask": mask}


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda detector, batches: quantize(detector, WeightOnly(overrides={"no.such.*": "float"})), "no.such"),
        (lambda detector, batches: quantize(detector, Static(calibration_images=4), []), "calibration"),
        (lambda detector, batches: quantize(detector, WeightOnly(bits=4), []), "calibration"),
        (lambda detector, batches: quantize(detector, Static(calibration_images=9), batches), "9"),
        (
            lambda detector, batches: quantize(detector, Static(calibration_images=4), [batches[0] | black()]),
            "empty",
        ),
        (lambda detector, batches: quantize(quantize(detector, WeightOnly()), WeightOnly()), "quantized already"),
        (lambda detector, batches: scheme_config("statik"), "static"),
        (lambda detector, batches: scheme_config("static", weight_bits=9), "2 to 8"),
        (lambda detector, batches: scheme_config("static", observr="mse"), "observer"),
    ],
    ids=[
        "pattern",
        "no images",
        "no images to round with",
        "too few images",
        "empty images",
        "twice",
        "scheme",
        "bits",
        "option",
    ],
)
def test_faults_are_one_sentence(tiny_detector, batches, make, says):
    with pytest.raises(UserError, match=says) as fault:
        make(tiny_detector("detr"), batches)
    assert "\n" not in str(fault.value)


def test_a_relu_behind_merged_convolutions_takes_their_grid(tiny_detector, batches):
    detector = tiny_detector("rt_detr_v2", activation_function="relu")
    record = quantize(detector, Static(calibration_images=2), batches).config.quantization_config
    merged = [name for name in record.layers if ".bottlenecks." in name]
    assert merged
    assert not any(record.layers[name]["output_bits"] for name in merged)
    assert {name.replace(".conv1.conv", ".activation") for name in merged} <= set(record.activations)
