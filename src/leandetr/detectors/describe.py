"""What a model of the published configuration weighs and costs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import AutoModelForObjectDetection, PreTrainedConfig

from leandetr.detectors.create import configure
from leandetr.detectors.families.registry import FAMILIES
from leandetr.detectors.multiply_adds import multiply_adds
from leandetr.detectors.names import MODELS
from leandetr.errors import unknown
from leandetr.structures import ClassMap

COCO = ClassMap(tuple(f"class {number}" for number in range(91)), tuple(range(91)))


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
    model, family = MODELS[name], FAMILIES[MODELS[name].model_type]
    config, _ = configure(name, COCO, family.published_size)
    return Description(
        name=name,
        what=model.description,
        backbone=model.backbone,
        parameters=count_parameters(config),
        multiply_adds=count_multiply_adds(config, family.published_size),
        image_size=family.published_size,
        size_divisor=family.divisor({}),
        source=family.source,
    )


def count_parameters(config: PreTrainedConfig) -> int:
    """Each tensor once, however many names it has. On PyTorch's meta device, where nothing is initialised."""
    with torch.device("meta"):
        model = AutoModelForObjectDetection.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())


def count_multiply_adds(config: PreTrainedConfig, image_size: tuple[int, int]) -> int:
    """Of one image of (height, width) pixels."""
    return multiply_adds(AutoModelForObjectDetection.from_config(config).eval().requires_grad_(False), image_size)
