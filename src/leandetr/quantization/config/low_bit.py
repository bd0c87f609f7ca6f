"""The scheme whose grids are trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import nn

from leandetr.errors import UserError, unknown
from leandetr.quantization.config.scheme import OPERANDS, Scheme
from leandetr.quantization.grids import BITS, GridSetting

PARTS = ("all", "backbone")


@dataclass(frozen=True)
class LowBit(Scheme):
    """Linear and Conv2d multiply integers on grids that are trained together with the weights (LSQ, LSQ+; Q-DETR, section 2.2).

    The model that `quantize` gives is at the start of such a training: it computes with rounded numbers and holds float ones;
    `finish` makes integers of them. Projections of the backbone's maps stay float beside the exceptions of all schemes.

    Made for, and tested with, detr, conditional_detr, deformable_detr, smca_detr, swin_detr and rt_detr_v2. The others were
    tried with tiny untrained models: dab_detr, adamixer, rt_detr, d_fine, deimv2, lw_detr, rf_detr and two-stage Deformable
    DETR get gradients in every parameter and are saved and finished; none of them has been trained to an accuracy. The operands
    of attention are reached everywhere in detr, conditional_detr, smca_detr and adamixer (its mixing stays float); in dab_detr
    nowhere; in the others not in deformable attention and in transformer backbones, as the record's `summary()` says.

    Args:
        bits: of weights, of the inputs of layers, and of the operands of attention, as "4-4-8"; "4" means "4-4-8". 2 to 8
            each. An override's bits hold for the layers (and attentions) that its pattern matches.
        attention: bits of single operands, "q", "k", "v" and "softmax", where they are others.
        first_convolution: bits of the first convolution's weights and input.
        depthwise: bits of depthwise convolutions' weights and inputs, where the others' are fewer. They hold a few weights
            a channel and few of the products, and lose the most (Jacob et al., 2018, and all low-bit mobile networks since).
        part: "all", or "backbone", which leaves encoder and decoder float: the first of Q-DETR's two stages.
        calibration_images: how many images the steps are initialised with, by the least squared rounding error; without a
            training they choose the rounding too, for which 128 are too few (docs/results.md).
    """

    bits: str = "4-4-8"
    attention: Mapping[str, int] = field(default_factory=dict)
    first_convolution: int = 8
    depthwise: int = 8
    part: str = "all"
    calibration_images: int = 512

    name: ClassVar[str] = "low-bit"
    trained: ClassVar[bool] = True
    also_float: ClassVar[Mapping[str, str]] = {"*input_proj*": "projection of the backbone's maps"}

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", str(self.bits))
        super().__post_init__()
        widths = self.bits.split("-")
        if len(widths) == 1:
            widths = [*widths * 2, "8"]
        if len(widths) != 3 or not all(width in map(str, BITS) for width in widths):
            raise UserError(
                f"low-bit: bits is {self.bits!r}; give those of weights, activations and attention as 4-4-8, each from 2 to 8, "
                "or one number"
            )
        object.__setattr__(self, "bits", "-".join(widths))
        for operand, width in self.attention.items():
            if operand not in OPERANDS:
                raise unknown("operand of attention", operand, OPERANDS)
            self._require_bits(f"attention.{operand}", width)
        self._require_bits("first_convolution", self.first_convolution)
        self._require_bits("depthwise", self.depthwise)
        if self.part not in PARTS:
            raise unknown("part", self.part, PARTS)
        self._require_images(self.calibration_images)

    @property
    def weight_bits(self) -> int:
        return int(self.bits.split("-")[0])

    @property
    def activation_bits(self) -> int:
        return int(self.bits.split("-")[1])

    def layer_bits(self, layer: nn.Module, first: bool) -> tuple[int, int]:
        """Of the weights and of the input of a Linear or Conv2d; `first` is the convolution that meets the image."""
        if first:
            return self.first_convolution, self.first_convolution
        if isinstance(layer, nn.Conv2d) and 1 < layer.groups == layer.in_channels:
            return max(self.weight_bits, self.depthwise), max(self.activation_bits, self.depthwise)
        return self.weight_bits, self.activation_bits

    def grid(self, bits: int) -> GridSetting:
        """How the grid that the training of an activation's step begins with is found."""
        return GridSetting(bits, "mse", calibration_images=self.calibration_images)

    def operand(self, name: str) -> GridSetting | None:
        return self.grid(self.attention.get(name, int(self.bits.split("-")[2]))) if self.part == "all" else None
