"""The families of detection transformers: what differs between them, see `Family`."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from accelerate.utils import reduce
from torch import Tensor, distributed, nn
from transformers import PreTrainedConfig, PreTrainedModel

from leandetr.detectors.adamixer import AdaMixerConfig
from leandetr.detectors.family import DecoderRun, Family, boxes_averaged_once, inverse_sigmoid
from leandetr.detectors.smca_detr import SmcaDetrConfig
from leandetr.detectors.swin_detr import SwinDetrConfig
from leandetr.errors import unknown
from leandetr.structures import Target


class Detr(Family):
    """DETR: as `Family` has it, classes by softmax."""

    head = "softmax"


class ConditionalDetr(Family):
    """Conditional DETR: the box head answers offsets from reference points that all layers share."""

    def layers(self, model: PreTrainedModel, run: DecoderRun) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.normed(model, run)
        centre = inverse_sigmoid(run.output.reference_points.transpose(0, 1))  # (B, N, 2), the same for all layers
        raw = model.bbox_predictor(hidden)
        return model.class_labels_classifier(hidden), torch.cat([raw[..., :2] + centre, raw[..., 2:]], -1).sigmoid(), hidden


class DeformableDetr(Family):
    """Deformable DETR: every layer answers offsets from the reference points that entered it."""

    arguments: ClassVar[dict[str, str]] = {**Family.arguments, "reference": "reference_points"}

    def layers(self, model: PreTrainedModel, run: DecoderRun) -> tuple[Tensor, Tensor, Tensor]:
        hidden = run.output.intermediate_hidden_states.transpose(0, 1)
        entered = [run.call["reference_points"], *run.output.intermediate_reference_points.transpose(0, 1)[:-1]]
        logits, boxes = [], []
        for layer, (state, reference) in enumerate(zip(hidden, entered, strict=True)):
            raw, reference = model.bbox_embed[layer](state), inverse_sigmoid(reference)
            raw = torch.cat([raw[..., :2] + reference, raw[..., 2:]], -1) if reference.shape[-1] == 2 else raw + reference
            logits.append(model.class_embed[layer](state))
            boxes.append(raw.sigmoid())
        return torch.stack(logits), torch.stack(boxes), hidden


class TwoStageDeformableDetr(DeformableDetr):
    """Deformable DETR whose queries are the encoder's best proposals: one box a cell, of which the class head's first column
    says whether an object is there."""

    queries_from_encoder = True

    def loss(self, model: PreTrainedModel, answer: Any, logits: Tensor, boxes: Tensor, labels: Sequence[Target]) -> Tensor:
        """transformers leaves the proposals out, and nothing else teaches their heads (Deformable DETR, appendix A.4): the same
        matching and losses on all cells, every object being of class 0."""
        config = copy.copy(model.config)
        config.auxiliary_loss = False
        objects = [target | {"class_labels": torch.zeros_like(target["class_labels"])} for target in labels]
        proposals = answer.enc_outputs_class, objects, logits.device, answer.enc_outputs_coord_logits.sigmoid()
        with boxes_averaged_once():
            of_encoder = model.loss_function(*proposals, config)[0]
        return super().loss(model, answer, logits, boxes, labels) + of_encoder


class DabDetr(Family):
    """DAB-DETR: a query's position is its anchor, four logits that every layer refines. The content queries enter the first
    layer as zeros: the weights that project them for its self-attention get no gradient."""

    arguments: ClassVar[dict[str, str]] = {"content": "inputs_embeds", "position": "query_position_embeddings"}

    def backbone(self, model: PreTrainedModel) -> nn.Module:
        return model.model.backbone.conv_encoder.model

    def layers(self, model: PreTrainedModel, run: DecoderRun) -> tuple[Tensor, Tensor, Tensor]:
        hidden, anchors = run.output.intermediate_hidden_states, run.output.reference_points
        boxes = (model.bbox_predictor(hidden) + inverse_sigmoid(anchors)).sigmoid()
        return model.class_embed(hidden), boxes, hidden


class RtDetr(Family):
    """RT-DETR and RT-DETRv2: heads inside the decoder, queries chosen by the encoder, denoising queries first in training."""

    arguments: ClassVar[dict[str, str]] = {"content": "inputs_embeds", "reference": "reference_points"}
    reference_logits = True
    queries_from_encoder = True
    size_divisor = 32
    group_masks = ("encoder_attention_mask",)  # the denoising queries' mask of the self-attention, whatever its name says

    def layers(self, model: PreTrainedModel, run: DecoderRun) -> tuple[Tensor, Tensor, Tensor]:
        output = run.output
        stacked = output.intermediate_logits, output.intermediate_reference_points, output.intermediate_hidden_states
        return tuple(tensor.transpose(0, 1) for tensor in stacked)

    def extra_queries(self, model: PreTrainedModel, run: DecoderRun) -> slice:
        return slice(run.call["inputs_embeds"].shape[1] - model.config.num_queries, None)

    def labels_enter_model(self, training: bool) -> bool:
        return True

    def share_of_boxes(self, labels: Sequence[Target]) -> float:
        """Every term is divided by the number of this process's own boxes (at least 1), where it should be the processes'
        mean."""
        if not distributed.is_initialized():
            return 1.0
        own = torch.tensor(float(sum(len(target["boxes"]) for target in labels)), device=labels[0]["boxes"].device)
        return (own.clamp(min=1) / reduce(own, "mean").clamp(min=1)).item()


class DFine(RtDetr):
    """D-FINE and DEIMv2: RT-DETR whose decoder, in evaluation, answers with its last layer alone. Boxes may reach out of
    [0, 1]; `reg_scale` and `up` of the decoder are constants that transformers keeps as parameters without gradient.

    `share_of_boxes` is RT-DETR's and not exact here: some of their terms are divided by the weights or by the matches of a
    process, not by its boxes.
    """

    @contextmanager
    def switched(self, model: PreTrainedModel, replay: bool) -> Iterator[None]:
        """The flag of the decoder itself, not of its layers, decides how many of them answer, and changes no answer."""
        decoder = model.model.decoder
        training, decoder.training = decoder.training, True
        try:
            yield
        finally:
            decoder.training = training

    def layers(self, model: PreTrainedModel, run: DecoderRun) -> tuple[Tensor, Tensor, Tensor]:
        output = run.output  # the first logits and boxes are those of a head before the first layer's own
        logits, boxes = output.intermediate_logits[:, 1:], output.intermediate_reference_points[:, 1:]
        return logits.transpose(0, 1), boxes.transpose(0, 1), output.intermediate_hidden_states


class Deimv2(DFine):
    """DEIMv2: D-FINE with its backbone at another place."""

    def backbone(self, model: PreTrainedModel) -> nn.Module:
        return model.model.conv_encoder.model


class LwDetr(Family):
    """LW-DETR and RF-DETR: in training, `group_detr` sets of queries that do not see each other, the main one first. All layers
    refine the same reference boxes, which the encoder proposes and learned offsets move; boxes may reach out of [0, 1].

    A checkpoint with a `mask_token` keeps it; only pretraining by masked images gives it a gradient.
    """

    arguments: ClassVar[dict[str, str]] = {"content": "inputs_embeds", "reference": "reference_points"}
    queries_from_encoder = True

    @contextmanager
    def switched(self, model: PreTrainedModel, replay: bool) -> Iterator[None]:
        """A self-attention in training splits whatever queries it gets into groups: not those of a single one."""
        attentions = [layer.self_attn for layer in model.model.decoder.layers]
        before = [attention.training for attention in attentions]
        for attention in attentions if replay else ():
            attention.training = False
        try:
            yield
        finally:
            for attention, training in zip(attentions, before, strict=True):
                attention.training = training

    def backbone(self, model: PreTrainedModel) -> nn.Module:
        return model.model.backbone.backbone

    def layers(self, model: PreTrainedModel, run: DecoderRun) -> tuple[Tensor, Tensor, Tensor]:
        hidden, reference = run.output.intermediate_hidden_states, run.call["reference_points"]
        raw, sides = model.bbox_embed(hidden), reference[..., 2:]
        boxes = torch.cat([raw[..., :2] * sides + reference[..., :2], raw[..., 2:].exp() * sides], -1)
        return model.class_embed(hidden), boxes, hidden

    def extra_queries(self, model: PreTrainedModel, run: DecoderRun) -> slice:
        return slice(model.config.num_queries)

    def labels_enter_model(self, training: bool) -> bool:
        return training

    def loss(self, model: PreTrainedModel, answer: Any, logits: Tensor, boxes: Tensor, labels: Sequence[Target]) -> Tensor:
        """In evaluation, where the model has one group and its own call of the loss would count `group_detr` of them."""
        config = copy.copy(model.config)
        config.auxiliary_loss, config.group_detr = True, 1
        proposals = answer.enc_outputs_class, answer.enc_outputs_coord_logits
        return model.loss_function(logits[-1], labels, logits.device, boxes[-1], config, logits, boxes, *proposals)[0]


class SmcaDetr(Family):
    """SMCA-DETR. As in DETR, the content queries enter the first layer as zeros: the values of its self-attention have a weight
    that gets no gradient."""

    def layers(self, model: PreTrainedModel, run: DecoderRun) -> tuple[Tensor, Tensor, Tensor]:
        hidden = run.output.intermediate_hidden_states
        return *model.heads(hidden, run.output.reference_logits), hidden


class SwinDetr(SmcaDetr):
    """SwinDETR: the structure of SMCA-DETR's code, classes by softmax."""

    head = "softmax"


class AdaMixer(Family):
    """AdaMixer: no encoder, so that features and memory are the projected backbone's. Boxes may reach out of [0, 1]."""

    arguments: ClassVar[dict[str, str]] = {"content": "inputs_embeds", "reference": "reference_points"}

    def layers(self, model: PreTrainedModel, run: DecoderRun) -> tuple[Tensor, Tensor, Tensor]:
        output = run.output
        return output.intermediate_logits, output.intermediate_boxes, output.intermediate_hidden_states


FAMILIES: dict[str, Family] = {
    "detr": Detr(),
    "conditional_detr": ConditionalDetr(),
    "deformable_detr": DeformableDetr(),
    "dab-detr": DabDetr(),
    "rt_detr": RtDetr(),
    "rt_detr_v2": RtDetr(),
    "d_fine": DFine(),
    "deimv2": Deimv2(),
    "lw_detr": LwDetr(),
    "rf_detr": LwDetr(),
    SwinDetrConfig.model_type: SwinDetr(),
    SmcaDetrConfig.model_type: SmcaDetr(),
    AdaMixerConfig.model_type: AdaMixer(),
}
TWO_STAGE = TwoStageDeformableDetr()


def family_of(config: PreTrainedConfig) -> Family:
    """Raises UserError for a model type that is none of ours, naming the nearest."""
    if config.model_type not in FAMILIES:
        raise unknown("detector family", config.model_type, FAMILIES)
    if getattr(config, "two_stage", False):
        return TWO_STAGE
    return FAMILIES[config.model_type]
