"""What a family of detection transformers is: how its decoder is called, how its layers are read, which loss is its own.

A family never re-implements a model. It names the decoder's query arguments, turns what the decoder's layers returned into
logits and boxes with the model's own heads, and calls the model's own loss. `Detector` does everything that is the same for
all.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from accelerate.utils import reduce
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.loss import loss_for_object_detection

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
    #: side of the pixel grid that image sizes must be multiples of, where the backbone does not decide it; 1 for any size
    size_divisor = 1
    #: keyword arguments of the decoder that say how the main queries and the others of a training call see each other
    group_masks: ClassVar[tuple[str, ...]] = ()

    @contextmanager
    def switched(self, model: PreTrainedModel, replay: bool) -> Iterator[None]:
        """Around a call of the model, or (replay) of its decoder with main queries alone: with every switch set that its layers
        need to be read."""
        yield

    def backbone(self, model: PreTrainedModel) -> nn.Module:
        """What may have been pretrained as a classifier, without the projections that follow it."""
        return model.model.backbone.model

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

    def share_of_boxes(self, labels: Sequence[Target]) -> float:
        """What the loss of a process is multiplied with, where the family computed it inside the model, so that the mean over
        the processes is the loss of the whole batch."""
        return 1.0

    def loss(self, model: PreTrainedModel, answer: Any, logits: Tensor, boxes: Tensor, labels: Sequence[Target]) -> Tensor:
        """The family's own loss over all layers; `answer` is the model's output. Its auxiliary layers are asked for in a copy
        of the configuration, because in DETR and Conditional DETR `auxiliary_loss` in the model's configuration changes the
        function it computes."""
        config = copy.copy(model.config)
        config.auxiliary_loss = True
        with boxes_averaged_once():
            return model.loss_function(logits[-1], labels, logits.device, boxes[-1], config, logits, boxes)[0]


@contextmanager
def boxes_averaged_once() -> Iterator[None]:
    """transformers divides the number of boxes by the number of processes after accelerate's `reduce` has averaged it already:
    give it the sum. Nothing changes in a single process."""
    averaging = loss_for_object_detection.reduce
    loss_for_object_detection.reduce = lambda tensor, reduction="sum": reduce(tensor, "sum")
    try:
        yield
    finally:
        loss_for_object_detection.reduce = averaging
