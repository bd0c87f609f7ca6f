"""The families by model type. Importing this imports all of them, and so registers our own with transformers' Auto classes."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module

from transformers import PreTrainedConfig

from leandetr.detectors.families.family import Family
from leandetr.detectors.names import MODELS, Model
from leandetr.errors import unknown

FAMILIES: dict[str, Family] = {}
for _module in dict.fromkeys(model.module for model in MODELS.values()):
    FAMILIES |= import_module(f"leandetr.detectors.families.{_module}").FAMILIES


def register(model_type: str, family: Family, **models: Model) -> None:
    """Make a family known, and short names for new models of it: `register("my_detr", MyDetr(), my_detr=Model(...))`.

    Its configuration and model must be registered with transformers' AutoConfig and AutoModelForObjectDetection.
    """
    FAMILIES[model_type] = family
    MODELS.update({name: replace(model, built_here=True) for name, model in models.items()})


def family_of(config: PreTrainedConfig) -> Family:
    """Raises UserError for a model type that is none of ours, naming the nearest."""
    if config.model_type not in FAMILIES:
        raise unknown("detector family", config.model_type, FAMILIES)
    return FAMILIES[config.model_type].of(config)


def float_layers() -> dict[str, str]:
    """Pattern of layer names -> why such layers stay float under quantization, of all families together."""
    return {pattern: why for family in FAMILIES.values() for pattern, why in family.float_layers.items()}
