"""What an exported file says about itself, so that it works alone: classes, preprocessing, head, and where it comes from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from math import prod

import torch
import transformers
from pydantic import TypeAdapter

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
        """Raises ValueError or UserError where the text is not what `to_json` writes."""
        found = _WRITTEN.validate_json(text)
        prepared = found.preprocessing
        return replace(found, preprocessing=replace(prepared, mean=tuple(prepared.mean), std=tuple(prepared.std)))


_WRITTEN = TypeAdapter(Metadata)


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
