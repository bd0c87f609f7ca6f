"""What a model of the published configuration weighs and costs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForObjectDetection, PreTrainedConfig

from leandetr.detectors.create import MODELS, configure, size_divisor
from leandetr.errors import unknown
from leandetr.structures import ClassMap

COCO = ClassMap(tuple(f"class {number}" for number in range(91)), tuple(range(91)))
#: (height, width) at which cost is counted: a photograph of 4:3 whose shorter side is 800, as in DETR's lineage, or the square
#: that a family is published for
SIZES = dict.fromkeys(("rt_detr", "rt_detr_v2", "d_fine", "deimv2", "lw_detr"), (640, 640))
SIZES |= {"rf_detr": (560, 560), "swin_detr": (224, 224)}
LARGE = (800, 1066)
SOURCES = {
    "detr": "https://github.com/facebookresearch/detr",
    "conditional_detr": "https://github.com/Atten4Vis/ConditionalDETR",
    "deformable_detr": "https://github.com/fundamentalvision/Deformable-DETR",
    "dab-detr": "https://github.com/IDEA-Research/DAB-DETR",
    "smca_detr": "https://github.com/gaopengcuhk/SMCA-DETR",
    "adamixer": "https://github.com/MCG-NJU/AdaMixer",
    "swin_detr": "Efficient SwinDETR (Lee et al.), section 2",
    "rt_detr": "https://github.com/lyuwenyu/RT-DETR",
    "rt_detr_v2": "https://github.com/lyuwenyu/RT-DETR",
    "d_fine": "https://github.com/Peterande/D-FINE",
    "deimv2": "https://github.com/Intellindust-AI-Lab/DEIMv2",
    "lw_detr": "https://github.com/Atten4Vis/LW-DETR",
    "rf_detr": "https://github.com/roboflow/rf-detr",
}


@dataclass(frozen=True)
class Description:
    """parameters: of the default configuration with 91 class columns. multiply_adds: of one image of `image_size` (height,
    width), in matrix products, convolutions and attention; sampling, norms and activations are not counted. size_divisor: what
    both sides of an image must be multiples of. source: where the family was published."""

    name: str
    what: str
    backbone: str
    parameters: int
    multiply_adds: int
    image_size: tuple[int, int]
    size_divisor: int
    source: str


def describe(name: str) -> Description:
    """Build the default configuration of one of `MODELS` and let it answer one empty image, which takes seconds.

    Raises UserError for an unknown name and for a family that the installed transformers lacks.
    """
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    recipe = MODELS[name]
    size = SIZES.get(recipe.model_type, LARGE)
    config, _ = configure(name, COCO, size)
    return Description(
        name=name,
        what=recipe.description,
        backbone=recipe.backbone,
        parameters=count_parameters(config),
        multiply_adds=count_multiply_adds(config, size),
        image_size=size,
        size_divisor=size_divisor(recipe.model_type, {}),
        source=SOURCES[recipe.model_type],
    )


def count_parameters(config: PreTrainedConfig) -> int:
    """Each tensor once, however many names it has. On PyTorch's meta device, where nothing is initialised."""
    with torch.device("meta"):
        model = AutoModelForObjectDetection.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())


def count_multiply_adds(config: PreTrainedConfig, image_size: tuple[int, int]) -> int:
    """Of one image of (height, width) pixels. With real tensors: some families look at values to decide what to compute."""
    model = AutoModelForObjectDetection.from_config(config).eval().requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        model(pixel_values=torch.zeros(1, 3, *image_size))
    return counter.get_total_flops() // 2
