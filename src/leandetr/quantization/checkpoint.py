"""How a quantized model says what it is, in `config.json`, and is built again when transformers loads it.

The record holds the result of every decision (what was folded, each layer's plan), not the decisions: loading never
matches a pattern, runs a model or needs data. Once this module is imported (`leandetr.transformers` does),
`AutoModelForObjectDetection.from_pretrained(folder)` knows the method.
"""

from __future__ import annotations

from typing import Any, cast

from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin, QuantizationMethod

from leandetr.detectors.attention import open_attention
from leandetr.quantization.config import LowBit
from leandetr.quantization.layers.folded import apply_folds, apply_merges
from leandetr.quantization.layers.modules import GriddedActivation, LayerPlan, quantized_layer, replace_modules
from leandetr.quantization.layers.trainable import TrainableActivation, TrainableLayer, trainable_layer

METHOD = "leandetr"
SLOTS = ".slots."  # in the names of attention operands


@register_quantization_config(METHOD)
class QuantizationRecord(QuantizationConfigMixin):
    """What was done to a model.

    Args:
        scheme: the configuration it was quantized with, as a mapping.
        folds: convolution -> BatchNorm folded into it.
        layers: quantized layer -> its `LayerPlan`, as a mapping.
        activations: activation function -> bits of the grid on its output.
        left_float: layer with weights, or attention, that stayed float -> why.
        trainable: whether the layers hold float weights that are rounded as they run, see `layers/trainable.py`.
        kept_wide: layer with 8-bit weights and float arithmetic where fewer bits or integer arithmetic were asked for -> why.
        merges: branch of a block -> the convolution that has taken it in.
    """

    def __init__(  # noqa: PLR0913 - the keys of config.json
        self,
        scheme: dict[str, Any],
        folds: dict[str, str],
        layers: dict[str, dict[str, Any]],
        activations: dict[str, int],
        left_float: dict[str, str],
        trainable: bool = False,
        kept_wide: dict[str, str] | None = None,
        merges: dict[str, str] | None = None,
        quant_method: str = METHOD,
    ) -> None:
        self.quant_method = cast("QuantizationMethod", quant_method)  # an enumeration of transformers' own ones
        self.scheme = scheme
        self.folds = folds
        self.layers = layers
        self.activations = activations
        self.left_float = left_float
        self.trainable = trainable
        self.kept_wide = kept_wide or {}
        self.merges = merges or {}

    @property
    def as_asked(self) -> list[str]:
        """The quantized layers without those of `kept_wide`."""
        return [layer for layer in self.layers if layer not in self.kept_wide]

    def summary(self) -> str:
        """One line on what was quantized, then one a reason on what was not."""
        inputs: dict[str, int] = {}
        for plan in self.layers.values():
            inputs[plan["input"]] = inputs.get(plan["input"], 0) + 1
        kinds = ", ".join(f"{count} with {INPUTS[kind]}" for kind, count in sorted(inputs.items()))
        lines = [f"{self.scheme['scheme']}: {len(self.layers)} layers quantized ({kinds}), {len(self.left_float)} left float"]
        for kind, layers in (("float", self.left_float), ("8-bit weights in float arithmetic", self.kept_wide)):
            reasons: dict[str, list[str]] = {}
            for name, reason in layers.items():
                reasons.setdefault(reason, []).append(name)
            for reason, names in reasons.items():
                lines.append(f"  {kind}, {reason}: {len(names)} ({', '.join(names[:2])}{', ...' if len(names) > 2 else ''})")
        return "\n".join(lines)


INPUTS = {
    "float": "float inputs",
    "dynamic": "inputs quantized at run time",
    "dynamic-rows": "inputs quantized row by row at run time",
    "grid": "inputs on calibrated grids",
    "given": "inputs that come on a calibrated grid",
}


def build(model: PreTrainedModel, record: QuantizationRecord) -> dict[nn.Module, nn.Module]:
    """Give a model whose norms are folded the structure of the record, with empty quantized layers. What has it already, from
    an earlier stage of a training, is left alone.

    Returns old module -> new module.
    """
    if any(SLOTS in name for name in record.activations):
        open_attention(model)
    if record.scheme["scheme"] == LowBit.name:
        freeze_batch_norm_2d(model)  # those that could not be folded
    new_layer = trainable_layer if record.trainable else quantized_layer
    new_activation = TrainableActivation if record.trainable else GriddedActivation
    replacements: dict[nn.Module, nn.Module] = {}
    for name, plan in record.layers.items():
        layer = cast("nn.Linear | nn.Conv2d", model.get_submodule(name))
        if not (record.trainable and isinstance(layer, TrainableLayer)):
            replacements[layer] = new_layer(layer, LayerPlan(**plan))
    for name, bits in record.activations.items():
        activation = model.get_submodule(name)
        if not isinstance(activation, TrainableActivation):
            replacements[activation] = _beside(model, new_activation(activation, bits))
        elif not record.trainable:
            replacements[activation] = _beside(model, new_activation(activation.activation, bits))
    replace_modules(model, replacements)
    return replacements


def _beside(model: PreTrainedModel, activation: nn.Module) -> nn.Module:
    """On the model's device; while a model is being loaded both are without data, and stay so."""
    without_data = any(value.is_meta for value in activation.state_dict().values())
    return activation if without_data else activation.to(model.device)


def weights_left_float(model: PreTrainedModel, record: QuantizationRecord) -> list[nn.Parameter]:
    """The weights of the layers that stayed float; not their biases, nor norms."""
    layers = [model.get_submodule(name) for name in record.left_float]
    found = [getattr(layer, "weight", None) for layer in layers]
    return [weight for weight in found if weight is not None and weight.ndim > 1]


def attach(model: PreTrainedModel, record: QuantizationRecord) -> None:
    """Mark a model as quantized, the way transformers marks one that it loaded."""
    marked: Any = model  # transformers sets these attributes and declares them nowhere
    marked.hf_quantizer = Quantizer(record)
    marked.is_quantized = True
    marked.quantization_method = METHOD
    marked.config.quantization_config = record


def detach(model: PreTrainedModel) -> None:
    """Take the mark away: the model cannot be saved as a quantized one any more."""
    marked: Any = model
    del marked.config.quantization_config, marked.hf_quantizer
    marked.is_quantized = False


@register_quantizer(METHOD)
class Quantizer(HfQuantizer):
    """Called by transformers while it loads a quantized checkpoint."""

    quantization_config: QuantizationRecord

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        apply_folds(model, self.quantization_config.folds)
        apply_merges(model, self.quantization_config.merges)
        build(model, self.quantization_config)
        return model

    def get_state_dict_and_metadata(self, model: PreTrainedModel) -> tuple[dict[str, Tensor] | None, dict[str, str]]:
        """What is written: of a finished low-bit detector the float weights in the 16 bits that `finish` rounded them to."""
        record = self.quantization_config
        if record.trainable or record.scheme["scheme"] != LowBit.name:
            return None, {}
        float_weights = {weight.data_ptr() for weight in weights_left_float(model, record)}
        state, halves = model.state_dict(), dict[int, Tensor]()
        for name, tensor in state.items():
            if tensor.data_ptr() in float_weights:  # one copy of a weight that has two names
                state[name] = halves.setdefault(tensor.data_ptr(), tensor.half())
        return state, {}

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return self.quantization_config.trainable

    @property
    def is_qat_trainable(self) -> bool:
        return self.quantization_config.trainable
