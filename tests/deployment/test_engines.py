"""The engines' table: what a name runs and where, and a sentence in place of a silent fall back to the CPU.

GPUs and their providers are stubs at the border to ONNX Runtime and PyTorch; nothing here ran on one.
"""

from contextlib import nullcontext

import onnxruntime
import pytest
import torch

import leandetr
from leandetr.deployment.agreement import agreement
from leandetr.deployment.engines import ENGINES, possible
from leandetr.deployment.providers import CPU, CUDA, TENSORRT, asked_providers, check_taken
from leandetr.deployment.pytorch import PyTorchRuntime
from leandetr.errors import UserError
from leandetr.quantization import WeightOnly, quantize


class Session:
    """What a session says that was given a provider and could, or could not, start it."""

    def __init__(self, taken):
        self.get_providers = lambda: taken


def test_every_artefact_has_its_own_engine_first():
    assert {suffix: possible(suffix)[0] for suffix in (".onnx", ".xml", ".pte", ".tflite", "")} == {
        ".onnx": "onnxruntime",
        ".xml": "openvino",
        ".pte": "executorch",
        ".tflite": "litert",
        "": "pytorch",
    }
    assert "onnxruntime-tensorrt" in possible(".onnx")
    assert set(possible(".pth")) == {name for name in ENGINES if name.startswith("pytorch")}


def test_a_provider_that_is_not_installed_is_a_sentence_with_its_package(monkeypatch, artefact, caplog):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
    gpu = torch.device("cuda", 1)
    with pytest.raises(UserError, match=rf"no {CUDA} \(it has {CPU}\).*pip install onnxruntime-gpu, or add --device cpu"):
        asked_providers(gpu)
    _, path = artefact("conditional_detr")
    for engine, provider in (("onnxruntime", CUDA), ("onnxruntime-tensorrt", TENSORRT)):
        with pytest.raises(UserError, match=provider):
            leandetr.open_runtime(path, engine=engine, device="cuda")
    assert leandetr.open_runtime(path, device="cuda").device.type == "cpu"  # nobody has asked for that engine, but it is said
    assert f"runs on the CPU: the installed ONNX Runtime has no {CUDA}" in caplog.text


def test_the_gpu_is_that_of_pytorch_and_tensorrt_gets_the_types_of_the_file(monkeypatch, artefact):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    gpu, metadata = torch.device("cuda", 1), leandetr.open_runtime(artefact("conditional_detr")[1]).metadata
    assert asked_providers(torch.device("cpu")) == [CPU]
    assert asked_providers(gpu) == [(CUDA, {"device_id": 1}), CPU]
    first = asked_providers(gpu, metadata)[0]
    assert first == (TENSORRT, {"device_id": 1, "trt_int8_enable": False, "trt_fp16_enable": False})


def test_a_session_that_fell_back_is_refused():
    asked = [(TENSORRT, {}), (CUDA, {}), CPU]
    check_taken(Session([TENSORRT, CUDA, CPU]), asked)
    with pytest.raises(UserError, match=rf"could not start it and took {CUDA}, {CPU}; it needs TensorRT's libraries"):
        check_taken(Session([CUDA, CPU]), asked)
    with pytest.raises(UserError, match=rf"took {CPU}; it needs CUDA's and cuDNN's .* or add --device cpu"):
        check_taken(Session([CPU]), asked[1:])


@pytest.mark.parametrize("engine", ["pytorch-graphs", "pytorch-graphs-half"])
def test_graphs_need_a_gpu(build, engine):
    with pytest.raises(UserError, match=rf"engine {engine} needs a GPU; add --device cuda, or name one of pytorch, "):
        PyTorchRuntime(build("detr"), engine=engine)


def test_half_precision_answers_as_float_and_boxes_are_finer_than_float16(build, batch):
    detector, pixels = build("detr", noise=0.05), batch(2)["pixel_values"]
    ours = PyTorchRuntime(detector).run(pixels, None)
    half = PyTorchRuntime(detector, engine="pytorch-half")
    theirs = half.run(pixels, None)
    assert half.name == "pytorch-half"
    assert [tensor.dtype for tensor in theirs] == [torch.float32] * 2
    assert not torch.equal(ours[0], theirs[0])  # it did compute otherwise
    share, _ = agreement(ours, theirs, detector.head, 1e-2)
    assert share > 0.9
    assert (theirs[1] != theirs[1].half().float()).any()
    quantized = quantize(build("detr"), WeightOnly())
    with pytest.raises(UserError, match="half precision is of float detectors, this one is quantized; name another engine"):
        PyTorchRuntime(quantized, engine="pytorch-half")


def test_compiled_is_what_the_compiler_made_of_it(build, batch, monkeypatch):
    asked = {}
    monkeypatch.setattr(torch, "compile", lambda module, mode: asked.update({mode: module}) or module)
    runtime = PyTorchRuntime(build("detr"), engine="pytorch-compile")
    assert asked == {"default": runtime.plain}
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    assert len(runtime(batch(1))) == 1
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(UserError, match=r"engine pytorch-compile: there is nothing to compile with; install g\+\+"):
        PyTorchRuntime(build("detr"), engine="pytorch-compile")


@pytest.mark.slow
def test_compiled_answers_as_it_does_uncompiled(build, batch):
    detector, pixels = build("detr"), batch(1)["pixel_values"]
    ours, theirs = (PyTorchRuntime(detector, engine=name).run(pixels, None) for name in ("pytorch", "pytorch-compile"))
    assert agreement(ours, theirs, detector.head, 1e-4)[0] == 1
