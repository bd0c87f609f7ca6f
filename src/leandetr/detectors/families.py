"""What differs between the families of detection transformers: how a decoder is called, and how its layers are read.

A family never re-implements a model. It names the decoder's query arguments, turns what the decoder's layers returned into
logits and boxes with the model's own heads, and calls the model's own loss. `Detector` does everything that is the same for all.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from leandetr.errors import unknown
from leandetr.structures import Queries, Target


@dataclass
class DecoderRun:
    """One recorded call of a decoder: its keyword arguments, what it returned, and the state after every layer (B, N, D)."""

    call: dict[str, Any]
    output: Any
    states: list[Tensor]


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    x = x.clamp(eps, 1 - eps)
    return torch.log(x / (1 - x))


class Family:
    """DETR, and what the others share with it. One object a model type; it holds no tensors."""

    head = "sigmoid"
    #: field of `Queries` -> keyword argument of the decoder
    arguments: ClassVar[dict[str, str]] = {"content": "inputs_embeds", "position": "object_queries_position_embeddings"}
    #: reference points enter the decoder as logits (before the sigmoid)
    reference_logits = False
    #: the queries are chosen among the encoder's cells, not learned
    queries_from_encoder = False
    #: side of the pixel grid that image sizes must be multiples of; 1 where any size is possible
    size_divisor = 1

    def layers(self, model: PreTrainedModel, run: DecoderRun) -> tuple[Tensor, Tensor, Tensor]:
        """-> logits (L, B, N, C), boxes (L, B, N, 4) in [0, 1], hidden (L, B, N, D) of every query in the call."""
        hidden = self.normed(model, run)
        return model.class_labels_classifier(hidden), model.bbox_predictor(hidden).sigmoid(), hidden

    def normed(self, model: PreTrainedModel, run: DecoderRun) -> Tensor:
        """The layers' states after the decoder's final norm; the last is what the decoder itself returned."""
        norm = model.model.decoder.layernorm
        return torch.stack([norm(state) for state in run.states[:-1]] + [run.output.last_hidden_state])

    def extra_queries(self, model: PreTrainedModel, run: DecoderRun) -> slice:
        """The main queries among those of a call made while training (denoising queries and groups left out)."""
        return slice(None)

    def read_queries(self, call: dict[str, Any]) -> Queries:
        found = {field: call.get(name) for field, name in self.arguments.items()}
        if found.get("reference") is not None and self.reference_logits:
            found["reference"] = found["reference"].sigmoid()
        return Queries(**found)

    def write_queries(self, queries: Queries) -> dict[str, Tensor]:
        """Keyword arguments for the decoder. ValueError where the queries lack something that this decoder takes."""
        arguments = {}
        for field, name in self.arguments.items():
            value = getattr(queries, field)
            if value is None:
                raise ValueError(f"this decoder takes queries with {', '.join(self.arguments)}; {field} is missing")
            arguments[name] = inverse_sigmoid(value) if field == "reference" and self.reference_logits else value
        return arguments

    def shapes(self, model: PreTrainedModel, run: DecoderRun, single_level: tuple[int, int] | None) -> list[tuple[int, int]]:
        """(h, w) of every level of the memory."""
        listed = run.call.get("spatial_shapes_list")
        return [(int(h), int(w)) for h, w in listed] if listed is not None else [single_level]

    def projection(self, model: PreTrainedModel) -> nn.Module | None:
        """The convolution whose output has the shape of a single-level memory."""
        return getattr(model.model, "input_projection", None)

    def labels_enter_model(self, training: bool) -> bool:
        """Whether the family computes its whole loss itself when labels are given (encoder proposals, denoising)."""
        return False

    def loss(self, model: PreTrainedModel, logits: Tensor, boxes: Tensor, labels: Sequence[Target]) -> Tensor:
        """The family's own loss over all layers. Its auxiliary layers are asked for in a copy of the configuration, because in
        DETR and Conditional DETR `auxiliary_loss` in the model's configuration changes the function it computes."""
        config = copy.copy(model.config)
        config.auxiliary_loss = True
        return model.loss_function(logits[-1], labels, logits.device, boxes[-1], config, logits, boxes)[0]


class Detr(Family):
    head = "softmax"


class ConditionalDetr(Family):
    def layers(self, model: PreTrainedModel, run: DecoderRun) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.normed(model, run)
        centre = inverse_sigmoid(run.output.reference_points.transpose(0, 1))  # (B, N, 2), the same for all layers
        raw = model.bbox_predictor(hidden)
        return model.class_labels_classifier(hidden), torch.cat([raw[..., :2] + centre, raw[..., 2:]], -1).sigmoid(), hidden


class DeformableDetr(Family):
    arguments: ClassVar[dict[str, str]] = {**Family.arguments, "reference": "reference_points"}

    def layers(self, model: PreTrainedModel, run: DecoderRun) -> tuple[Tensor, Tensor, Tensor]:
        hidden = run.output.intermediate_hidden_states.transpose(0, 1)
        entered = [run.call["reference_points"], *run.output.intermediate_reference_points.transpose(0, 1)[:-1]]
        logits, boxes = [], []
        for layer, (state, reference) in enumerate(zip(hidden, entered, strict=True)):
            raw, reference = model.bbox_embed[layer](state), inverse_sigmoid(reference)
            if reference.shape[-1] == 2:
                raw = torch.cat([raw[..., :2] + reference, raw[..., 2:]], -1)
            else:
                raw = raw + reference
            logits.append(model.class_embed[layer](state))
            boxes.append(raw.sigmoid())
        return torch.stack(logits), torch.stack(boxes), hidden


class RtDetr(Family):
    """RT-DETR and RT-DETRv2: heads inside the decoder, queries chosen by the encoder, denoising queries first while training."""

    arguments: ClassVar[dict[str, str]] = {"content": "inputs_embeds", "reference": "reference_points"}
    reference_logits = True
    queries_from_encoder = True
    size_divisor = 32

    def layers(self, model: PreTrainedModel, run: DecoderRun) -> tuple[Tensor, Tensor, Tensor]:
        output = run.output
        stacked = output.intermediate_logits, output.intermediate_reference_points, output.intermediate_hidden_states
        return tuple(tensor.transpose(0, 1) for tensor in stacked)

    def extra_queries(self, model: PreTrainedModel, run: DecoderRun) -> slice:
        return slice(run.call["inputs_embeds"].shape[1] - model.config.num_queries, None)

    def labels_enter_model(self, training: bool) -> bool:
        return True


FAMILIES: dict[str, Family] = {
    "detr": Detr(),
    "conditional_detr": ConditionalDetr(),
    "deformable_detr": DeformableDetr(),
    "rt_detr": RtDetr(),
    "rt_detr_v2": RtDetr(),
}


def family_of(config: PreTrainedConfig) -> Family:
    """Raises UserError for a model type that is none of ours, naming the nearest."""
    if config.model_type not in FAMILIES:
        raise unknown("detector family", config.model_type, FAMILIES)
    return FAMILIES[config.model_type]
