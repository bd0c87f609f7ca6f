"""The engines by name: what each runs, and on what."""

from __future__ import annotations

from dataclasses import dataclass

from leandetr.errors import UserError


@dataclass(frozen=True)
class Engine:
    """files: suffixes of the exported files that it runs, none where it runs detectors of PyTorch. gpu: whether it needs one.
    compiled, graphs, half: of PyTorch, whether `torch.compile` makes its kernels, whether they are replayed as one CUDA graph,
    and whether its products are float16. tensorrt: whether ONNX Runtime gives the graph to TensorRT."""

    files: tuple[str, ...] = ()
    gpu: bool = False
    compiled: bool = False
    graphs: bool = False
    half: bool = False
    tensorrt: bool = False


ENGINES = {
    "pytorch": Engine(),
    "pytorch-half": Engine(half=True),
    "pytorch-compile": Engine(compiled=True),
    "pytorch-compile-half": Engine(compiled=True, half=True),
    "pytorch-graphs": Engine(gpu=True, compiled=True, graphs=True),
    "pytorch-graphs-half": Engine(gpu=True, compiled=True, graphs=True, half=True),
    "onnxruntime": Engine((".onnx",)),
    "onnxruntime-tensorrt": Engine((".onnx",), gpu=True, tensorrt=True),
    "openvino": Engine((".onnx", ".xml")),
    "executorch": Engine((".pte",)),
    "litert": Engine((".tflite",)),
}
CPU_ENGINES = tuple(name for name, engine in ENGINES.items() if not engine.gpu)


def possible(suffix: str) -> list[str]:
    """The engines that run a file with this suffix, its own first; those of PyTorch where it is none of an exported file."""
    exported = is_exported(suffix)
    return [name for name, engine in ENGINES.items() if (suffix in engine.files if exported else not engine.files)]


def is_exported(suffix: str) -> bool:
    """Whether files with this suffix are exported ones."""
    return any(suffix in engine.files for engine in ENGINES.values())


def check_gpu(name: str, device: str) -> None:
    """Raises UserError where the engine of a name needs a GPU and the device, by its type, is none."""
    if ENGINES[name].gpu and device == "cpu":
        raise UserError(f"engine {name} needs a GPU; add --device cuda, or name one of {', '.join(CPU_ENGINES)}")
