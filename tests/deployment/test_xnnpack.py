"""Integers for ExecuTorch and LiteRT: products between grids on both sides, the quantized detector's answer, a smaller file.

The rules are those by which ExecuTorch takes a product for XNNPACK; the engines run where they are installed.
"""

import pytest
import torch

import leandetr
from leandetr.deployment.agreement import agreement
from leandetr.deployment.folding import folded_graph
from leandetr.deployment.litert import _join_on_one_grid
from leandetr.deployment.mobile_export import export_mobile
from leandetr.deployment.pytorch import PlainDetector, PyTorchRuntime
from leandetr.deployment.xnnpack import decomposed
from leandetr.errors import UserError
from leandetr.quantization import Static, WeightOnly, quantize

SUFFIX = {"executorch": ".pte", "litert": ".tflite"}
PRODUCTS = (torch.ops.aten.linear.default, torch.ops.aten.conv2d.default)
RECTIFIERS = (torch.ops.aten.relu.default, torch.ops.aten.relu_.default)
q = torch.ops.quantized_decomposed


@pytest.fixture(scope="module")
def quantized(build):
    """quantized("conditional_detr", Static()) -> a tiny detector on grids of random images."""

    def make(name="conditional_detr", scheme=Static(target="xnnpack", calibration_images=2)):  # noqa: B008 - it is frozen
        detector = build(name, noise=0.05)  # with more, PyTorch's own answer hangs on the rounding of sums
        height, width = detector.preprocessing.size
        pixels = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(7))
        mask = torch.ones(2, height, width, dtype=torch.int64)
        return quantize(detector, scheme, [{"pixel_values": pixels, "pixel_mask": mask}])

    return make


@torch.no_grad()
@pytest.mark.parametrize("name", ["conditional_detr", pytest.param("rt_detr_v2", marks=pytest.mark.slow)])
def test_a_product_of_integers_lies_between_grids_and_the_answer_stays(quantized, batch, name):
    detector, pixels = quantized(name), batch(1)["pixel_values"]
    model = PlainDetector(detector).eval()
    graph = folded_graph(model, pixels)
    in_integers = 0
    for node in graph.graph.nodes:
        if node.target not in PRODUCTS or node.args[1].target is not q.dequantize_per_channel.default:
            continue
        in_integers += 1
        assert node.args[0].target is q.dequantize_per_tensor.default
        (after,) = node.users
        if after.target in RECTIFIERS:
            (after,) = after.users
        assert after.target is q.quantize_per_tensor.default
        assert after.args[3:] == (-128, 127, torch.int8)
    layers = [plan for plan in detector.config.quantization_config.layers.values() if plan["input"] != "float"]
    assert 0.85 * len(layers) < in_integers <= len(layers)  # products of positions alone are constants
    for ours, theirs in zip(model(pixels), graph(pixels), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("engine", SUFFIX)
def test_the_engine_multiplies_the_same_integers_and_the_file_is_small(quantized, build, batch, tmp_path, engine):
    pytest.importorskip("executorch" if engine == "executorch" else "litert_torch", reason=f"needs leandetr[{engine}]")
    detector, pixels = quantized(), batch(3)["pixel_values"]
    path = export_mobile(detector, tmp_path / f"int8{SUFFIX[engine]}", engine)
    runtime = leandetr.open_runtime(path)
    assert runtime.metadata.scheme == "static"
    found = runtime.run(pixels, None)
    assert agreement(PyTorchRuntime(detector).run(pixels, None), found, detector.head, 1e-2)[0] == 1
    whole = export_mobile(build("conditional_detr", noise=0.05), tmp_path / f"float{SUFFIX[engine]}", engine)
    assert path.stat().st_size < 0.6 * whole.stat().st_size


@pytest.mark.parametrize("scheme", [Static(calibration_images=2), WeightOnly()])
@pytest.mark.parametrize("engine", SUFFIX)
def test_other_grids_are_refused_with_the_mend(quantized, monkeypatch, tmp_path, scheme, engine):
    name = "_import_runtime" if engine == "executorch" else "_import_interpreter"
    monkeypatch.setattr(f"leandetr.deployment.{engine}.{name}", lambda: (None, None))
    with pytest.raises(
        UserError, match="quantize the float one with --scheme static --set target=xnnpack, or export the float"
    ):
        export_mobile(quantized(scheme=scheme), tmp_path / f"m{SUFFIX[engine]}", engine)
    with pytest.raises(UserError, match="activation_bits is 4; give 8 with the target xnnpack"):
        Static(target="xnnpack", activation_bits=4)


class Joining(torch.nn.Module):
    """A wide part and, in another shape, a narrow one; the same with floats."""

    def forward(self, x):
        narrow = on_grid(x / 10, 0.01).transpose(1, 2)
        wide = on_grid(x, 0.1)
        return torch.cat([wide, narrow.transpose(1, 2)], 1), torch.cat([wide, x], 1)


def on_grid(x, scale):
    grid = (scale, 3, -128, 127, torch.int8)
    return decomposed.dequantize_per_tensor(decomposed.quantize_per_tensor(x, *grid), *grid)


def test_what_litert_joins_is_on_one_grid_that_cuts_nothing_off():
    model, x = Joining(), torch.linspace(-12, 12, 60).view(1, 5, 12)
    graph = torch.export.export(model, (x,), strict=False).module(check_guards=False)
    _join_on_one_grid(graph)
    (joined, floats), (expected, same) = graph(x), model(x)
    assert joined.abs().max() > 11
    torch.testing.assert_close(joined, expected, rtol=0, atol=0.051)  # half a step of the wide one
    torch.testing.assert_close(floats, same, rtol=0, atol=0)
    first, second = (node for node in graph.graph.nodes if node.target is torch.ops.aten.cat.default)
    assert len({part.args[1:] for part in first.args[0]}) == 1
    assert second.args[0][1].op == "placeholder"
