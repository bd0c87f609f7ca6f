"""D-FINE and DEIMv2."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar

from torch import Tensor, nn

from leandetr.detectors.families.family import DecoderRun
from leandetr.detectors.families.rt_detr import RtDetr
from leandetr.heads import ClassLoss
from leandetr.structures import DetectionModel


class DFine(RtDetr):
    """D-FINE and DEIMv2: RT-DETR whose decoder, in evaluation, answers with its last layer alone. Boxes may reach out of
    [0, 1]; `reg_scale` and `up` of the decoder are constants that transformers keeps as parameters without gradient.

    `share_of_boxes` is RT-DETR's and not exact here: some of their terms are divided by the weights or by the matches of a
    process, not by its boxes.
    """

    source = "https://github.com/Peterande/D-FINE"
    layout = None
    output_projection = None
    box_layers: ClassVar[Mapping[str, str]] = {
        **RtDetr.box_layers,
        "*pre_bbox_head*": "box head",
        "*integral": "from a distribution to a distance",
    }

    @contextmanager
    def switched(self, model: DetectionModel, replay: bool) -> Iterator[None]:
        """The flag of the decoder itself, not of its layers, decides how many of them answer, and changes no answer."""
        decoder = model.model.decoder
        training, decoder.training = decoder.training, True
        try:
            yield
        finally:
            decoder.training = training

    def layers(self, model: DetectionModel, run: DecoderRun) -> tuple[Tensor, Tensor, Tensor]:
        output = run.output  # the first logits and boxes are those of a head before the first layer's own
        logits, boxes = output.intermediate_logits[:, 1:], output.intermediate_reference_points[:, 1:]
        return logits.transpose(0, 1), boxes.transpose(0, 1), output.intermediate_hidden_states


class Deimv2(DFine):
    """DEIMv2: D-FINE with its backbone at another place."""

    source = "https://github.com/Intellindust-AI-Lab/DEIMv2"
    class_loss = ClassLoss.MATCHABILITY_AWARE
    encoder_parts = ("conv_encoder", *DFine.encoder_parts)  # whose projections differ by the backbone

    def backbone(self, model: DetectionModel) -> nn.Module:
        return model.model.conv_encoder.model


FAMILIES = {"d_fine": DFine(), "deimv2": Deimv2()}
