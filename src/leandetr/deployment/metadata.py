"""What an exported file says about itself, so that it works alone: classes, preprocessing, head, and where it comes from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from math import prod
from typing import Any

import torch
import transformers

from leandetr.detectors.detector import Detector
from leandetr.heads import Head
from leandetr.quantization.layers.modules import QuantizedLayer
from leandetr.quantization.theoretical_cost import theoretical_cost
from leandetr.structures import ClassMap, Preprocessing

#: the key under which the text is kept: in an ONNX file's properties, an OpenVINO file's runtime information, an ExecuTorch
#: file's methods, a LiteRT file's archive
KEY = "leandetr"


@dataclass(frozen=True)
class Metadata:
    """What is known of an exported file.

    head: what the columns of its logits mean. parameters: how many the model has. scheme: of its quantization, None for float.
    provenance: what it was made from and with, by name. end_to_end: whether pre- and post-processing are in the graph, see
    `end_to_end.py`; its labels are positions in `class_map.names`, and `class_map.dataset_ids` has the data set's own ids.
    half: whether its products are float16.
    theoretical_speedup: over float by the bits of its products, see `quantization/theoretical_cost.py`; None for float.
    """

    class_map: ClassMap
    preprocessing: Preprocessing
    head: Head
    parameters: int
    scheme: str | None
    provenance: dict[str, str]
    theoretical_speedup: float | None = None
    end_to_end: bool = False
    half: bool = False

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Metadata:
        """Raises KeyError, TypeError or ValueError where the text is not what `to_json` writes."""
        values: dict[str, Any] = json.loads(text)
        classes, preprocessing = values["class_map"], values["preprocessing"]
        size, mean, std = (preprocessing.pop(name) for name in ("size", "mean", "std"))
        return cls(
            **values
            | {
                "head": Head(values["head"]),
                "class_map": ClassMap(tuple(classes["names"]), tuple(classes["dataset_ids"])),
                "preprocessing": Preprocessing(
                    None if size is None else tuple(size), mean=tuple(mean), std=tuple(std), **preprocessing
                ),
            }
        )


def describe(
    detector: Detector,
    preprocessing: Preprocessing,
    end_to_end: bool = False,
    half: bool = False,
    packages: Sequence[str] = ("leandetr", "onnx", "onnxscript"),
) -> Metadata:
    """The metadata of a detector that is exported for photographs prepared as `preprocessing` says; packages: that write it."""
    return Metadata(
        class_map=detector.class_map,
        preprocessing=preprocessing,
        head=detector.head,
        parameters=count_parameters(detector),
        scheme=scheme_of(detector),
        provenance={
            "source": str(getattr(detector.config, "_name_or_path", "") or "built in memory"),
            "model_type": detector.config.model_type,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
        | {name: version(name) for name in packages},
        theoretical_speedup=None if scheme_of(detector) is None else theoretical_cost(detector, preprocessing.size).speedup,
        end_to_end=end_to_end,
        half=half,
    )


def count_parameters(detector: Detector) -> int:
    """Weights and biases, however many of them share a byte."""
    layers = (module for module in detector.modules() if isinstance(module, QuantizedLayer))
    packed = {layer.weight: prod(layer.shape) for layer in layers}
    return sum(packed.get(parameter, parameter.numel()) for parameter in detector.parameters())


def scheme_of(detector: Detector) -> str | None:
    """The name of the scheme a detector was quantized with, None where it is float."""
    record = getattr(detector.config, "quantization_config", None)
    return None if record is None else record.scheme["scheme"]
