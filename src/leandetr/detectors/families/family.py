"""What a family of detection transformers is: all that the rest of the house has to know about it.

A family never re-implements a model. It names the decoder's query arguments, turns what the decoder's layers returned into
logits and boxes with the model's own heads, and calls the model's own loss. It says how a new model of it is configured and
initialised, and what its layers are called where this matters. Everything that is the same for all is elsewhere.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, ClassVar, cast

import torch
from accelerate.utils import reduce
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.loss import loss_for_object_detection

from leandetr.detectors.backbones import Backbone, describe_backbone
from leandetr.detectors.families.layout import PHOTOGRAPHS, SQUARES, Layout
from leandetr.heads import ClassLoss, Head
from leandetr.structures import DetectionModel, Preprocessing, Queries, Target


@dataclass
class DecoderRun:
    """One recorded call of a decoder: its keyword arguments, what it returned, and the state after every layer (B, N, D)."""

    call: dict[str, Any]
    output: Any
    states: list[Tensor]


class Rows(Enum):
    """What the rows of a layer's weights stand for, where there is one a class.

    CLASSES: the logit of a class; a softmax's last row is no object. PROPOSALS: the same of the encoder's cells, never with no
    object. LABELS: what stands for a label among denoising queries; the last row is padding. OBJECTNESS: of all rows the first
    alone is read, and says whether an object is there.
    """

    CLASSES = "classes"
    PROPOSALS = "proposals"
    LABELS = "labels"
    OBJECTNESS = "objectness"


#: layers of every deformable attention that say where it looks
SAMPLING = {"*sampling_offsets": "sampling offsets", "*.attention_weights": "weights of sampled points"}


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """log(x / (1 - x)) of x in [0, 1], which is kept `eps` from both ends."""
    x = x.clamp(eps, 1 - eps)
    return torch.log(x / (1 - x))


class Family:
    """DETR, and what the others share with it. One object a model type; it holds no tensors.

    Patterns of layer names are as in `fnmatch`; `*` also crosses dots.
    """

    #: where it was published, and the (height, width) at which it is described: a photograph of 4:3 whose shorter side is 800,
    #: as in DETR's lineage, or the square that a family is made for
    source: str = ""
    published_size: tuple[int, int] = (800, 1066)
    #: of the files that its authors published, where they can be read
    layout: ClassVar[Layout | None] = None

    #: how its classes are trained, and with that the kind of its class head
    class_loss: ClassVar[ClassLoss] = ClassLoss.FOCAL
    #: field of `Queries` -> keyword argument of the decoder
    arguments: ClassVar[dict[str, str]] = {"content": "inputs_embeds", "position": "object_queries_position_embeddings"}
    #: reference points enter the decoder as logits (before the sigmoid)
    reference_logits = False
    #: the queries are chosen among the encoder's cells, not learned
    queries_from_encoder = False
    #: they are chosen by logits that the encoder gives every class, see `proposals`
    proposes_classes = False
    #: the content of a query is the memory at its place, see `content_of` and `proposed_boxes`
    content_from_memory = False
    #: the place of a query is a box that may be anywhere, see `queries_of_boxes`
    queries_are_boxes = False
    #: keyword arguments of the decoder that say how the main queries and the others of a training call see each other
    group_masks: ClassVar[tuple[str, ...]] = ()

    #: how many of its backbone's last stages a new model uses
    stages = 1
    #: the norms of a backbone that was not pretrained are frozen too
    frozen_norm = True
    #: backbones that it alone has; and whether it takes no other, and that one is not pretrained as a classifier
    own_backbones: tuple[str, ...] = ()
    one_backbone = False
    #: side of the pixel grid that image sizes must be multiples of, where the backbone does not decide it; 1 for any size
    size_divisor = 1

    #: names in the trunk of what lies between backbone and decoder
    encoder_parts: tuple[str, ...] = ("input_projection", "encoder")
    #: the trunk's table of learned queries, a row a query
    query_table: str | None = "query_position_embeddings"
    #: the last projection of a decoder layer's attention to the memory; None where there is none
    output_projection: str | None = "o_proj"
    #: attentions of a layer that has weights of its own for each of their heads, so that none can leave
    bound_heads: tuple[str, ...] = ()
    #: pattern -> what the layers are. Those that compute classes; those that compute boxes, and the points that boxes are told
    #: from; and others that lose much where their arithmetic is rounded: all compute in float unless told otherwise, and boxes
    #: in single precision
    class_layers: ClassVar[Mapping[str, str]] = {"*class_labels_classifier*": "class head"}
    box_layers: ClassVar[Mapping[str, str]] = {"*bbox_predictor*": "box head"}
    delicate_layers: ClassVar[Mapping[str, str]] = {}
    #: in the names of the parameters that are trained ten times slower
    slow_layers: ClassVar[tuple[str, ...]] = ()

    @property
    def head(self) -> Head:
        """What the columns of its logits mean."""
        return self.class_loss.head

    @property
    def float_layers(self) -> dict[str, str]:
        """Pattern -> why such layers stay float under quantization unless told otherwise."""
        return {**self.class_layers, **self.box_layers, **self.delicate_layers}

    def of(self, config: PreTrainedConfig) -> Family:
        """The family of a configuration of this model type, where some change what the model is."""
        return self

    def describe_backbone(
        self, name: str, image_size: tuple[int, int], frozen_norm: bool, overrides: dict[str, Any]
    ) -> Backbone:
        """The backbone of a new model; `overrides` changes its configuration. Raises UserError for one that cannot be had."""
        return describe_backbone(name, self.stages, frozen_norm, overrides)

    def divisor(self, backbone: Mapping[str, Any]) -> int:
        """What both sides of an image must be multiples of, in pixels, with these values of the backbone's configuration."""
        return self.size_divisor

    def follows(self, backbone: Backbone, frozen_norm: bool, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """Configuration values that follow from the backbone and from values asked for."""
        return {}

    def proposal_strides(self, plain: PreTrainedConfig, backbone: Backbone, values: Mapping[str, Any]) -> list[float] | None:
        """Pixels a cell of the maps among whose cells a new model chooses its queries; None where they are learned. `plain`:
        the default configuration. `values`: those that differ."""
        return list(backbone.strides) if self.queries_from_encoder else None

    def counted(self, values: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
        """The values with the number of queries under every name that it has in the configuration."""
        return values

    def class_rows(self, config: PreTrainedConfig) -> dict[str, Rows]:
        """Pattern of layer names -> what the rows of its weights are, of every layer that has one a class."""
        return {"class_labels_classifier": Rows.CLASSES}

    def own_preprocessing(self, config: PreTrainedConfig) -> Preprocessing:
        """As its authors prepare images, for a checkpoint that does not say how: as DETR does, else squeezed to the size that
        it was published for."""
        return PHOTOGRAPHS if self.published_size == Family.published_size else replace(SQUARES, size=self.published_size)

    def query_counts(self, config: PreTrainedConfig, count: int) -> dict[str, int]:
        """Configuration values of a model with so many object queries."""
        return {"num_queries": count}

    def query_groups(self, key: str, config: PreTrainedConfig) -> int:
        """How many tables of learned queries, a row a query, lie below each other in a weight; 0 for one that is none."""
        return int(key == f"model.{self.query_table}.weight")

    def weight_before(self, key: str, old: PreTrainedConfig, new: PreTrainedConfig) -> str:
        """What a weight of a model of the configuration `new` is called in one of `old`."""
        return key

    def initialise(self, model: DetectionModel) -> None:
        """Draw the weights of a new model outside its backbone, where the model's own start is not the authors'."""

    def learned_queries(self, model: DetectionModel) -> nn.Embedding | None:
        """The table, a row a query, or None."""
        table = getattr(model.model, self.query_table, None) if self.query_table else None
        return table if isinstance(table, nn.Embedding) else None

    def queries_of_rows(self, model: DetectionModel, rows: Tensor, own: Queries) -> Queries:
        """Rows (B, N, ...) as in the table -> the queries that the model would make of them; `own` are those it has made."""
        return Queries(content=torch.zeros_like(cast(Tensor, own.content)), position=rows)

    def queries_of_boxes(self, model: DetectionModel, boxes: Tensor, own: Queries) -> Queries:
        """Queries that ask for boxes (B, N, 4), of inputs that the decoder was trained on, where `queries_are_boxes`; `own` are
        those of the model."""
        content = cast(Tensor, own.content).mean(1, keepdim=True)  # what is learned belongs to ranks and not to boxes
        return Queries(content=content.expand(-1, boxes.shape[1], -1), reference=boxes)

    def content_of(self, model: DetectionModel, cells: Tensor) -> Tensor:
        """Cells of the memory (B, N, D) -> the content of queries there, where `content_from_memory`."""
        raise NotImplementedError

    def proposed_boxes(self, model: DetectionModel, content: Tensor, anchors: Tensor) -> Tensor:
        """The boxes (B, N, 4) that the encoder proposes at anchors (B, N, 4) whose cells have become this content (B, N, D),
        where `content_from_memory`."""
        raise NotImplementedError

    def proposals(self, model: DetectionModel, answer: Any) -> tuple[Tensor, Tensor]:
        """Logits (B, N, C) and boxes (B, N, 4) of the cells that became the main queries, out of the model's own output, where
        `proposes_classes`."""
        raise NotImplementedError

    def self_attention(self, layer: Any) -> nn.Module:
        """A decoder layer's attention among the queries."""
        return layer.self_attn

    def cross_attention(self, layer: Any) -> nn.Module | None:
        """A decoder layer's attention to the memory; None where it has none (AdaMixer)."""
        return layer.encoder_attn

    @contextmanager
    def switched(self, model: DetectionModel, replay: bool) -> Iterator[None]:
        """Around a call of the model, or (replay) of its decoder with main queries alone: with every switch set that its layers
        need to be read."""
        yield

    def backbone(self, model: DetectionModel) -> nn.Module:
        """What may have been pretrained as a classifier, without the projections that follow it."""
        return model.model.backbone.model

    def encoder(self, model: DetectionModel) -> list[nn.Module | nn.Parameter]:
        """What makes the memory of the backbone's maps."""
        parts = (getattr(model.model, name, None) for name in self.encoder_parts)
        return [part for part in parts if part is not None]

    def layers(self, model: DetectionModel, run: DecoderRun) -> tuple[Tensor, Tensor, Tensor]:
        """-> logits (L, B, N, C), boxes (L, B, N, 4) in [0, 1], hidden (L, B, N, D) of every query in the call."""
        hidden = self.normed(model, run)
        return model.class_labels_classifier(hidden), model.bbox_predictor(hidden).sigmoid(), hidden

    def normed(self, model: DetectionModel, run: DecoderRun) -> Tensor:
        """The layers' states after the decoder's final norm; the last is what the decoder itself returned."""
        norm = model.model.decoder.layernorm
        return torch.stack([norm(state) for state in run.states[:-1]] + [run.output.last_hidden_state])

    def extra_queries(self, model: DetectionModel, run: DecoderRun) -> slice:
        """The main queries among those of a call made while training (denoising queries and groups left out)."""
        return slice(None)

    def read_queries(self, call: dict[str, Any]) -> Queries:
        found: dict[str, Any] = {field: call.get(name) for field, name in self.arguments.items()}
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

    def shapes(self, model: DetectionModel, run: DecoderRun, single_level: tuple[int, int] | None) -> list[tuple[int, int]]:
        """(h, w) of every level of the memory."""
        listed: Any = run.call.get("spatial_shapes_list")
        if listed is None:
            listed = [single_level]
        return [(int(h), int(w)) for h, w in listed]

    def projection(self, model: DetectionModel) -> nn.Module | None:
        """The convolution whose output has the shape of a single-level memory."""
        return getattr(model.model, "input_projection", None)

    def labels_enter_model(self, training: bool) -> bool:
        """Whether the family computes its whole loss itself when labels are given (encoder proposals, denoising)."""
        return False

    def share_of_boxes(self, labels: Sequence[Target]) -> Tensor | float:
        """What the loss of a process is multiplied with, where the family computed it inside the model, so that the mean over
        the processes is the loss of the whole batch."""
        return 1.0

    def loss(self, model: DetectionModel, answer: Any, logits: Tensor, boxes: Tensor, labels: Sequence[Target]) -> Tensor:
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
