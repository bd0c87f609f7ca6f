"""All units of a detector that can leave, and the configuration's word for how many are left.

The numbers stand under `pruned_units` in `config.json`: name of the layer, attention or convolution -> units; what is not named
there has the configuration's own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from leandetr.detectors.attention_heads import attention_heads
from leandetr.detectors.feed_forward import hidden_units
from leandetr.detectors.inner_channels import inner_channels
from leandetr.detectors.units import STRUCTURES, Structure, Units

FINDERS: dict[Structure, Callable[[PreTrainedModel], dict[str, Units]]] = {
    "ffn": hidden_units,
    "heads": attention_heads,
    "channels": inner_channels,
}


def prunable_units(model: PreTrainedModel, structures: Collection[Structure] = STRUCTURES) -> dict[str, Units]:
    """Those of a float detector's model, by name."""
    return {
        name: units for structure in FINDERS if structure in structures for name, units in FINDERS[structure](model).items()
    }


def pruned_units(config: PreTrainedConfig) -> dict[str, int]:
    """Name -> units, where some have left."""
    return dict(getattr(config, "pruned_units", None) or {})


def apply_counts(model: PreTrainedModel, counts: Mapping[str, int]) -> None:
    """Give a new model so many units, the first ones. Names that it lacks, as a detector cut to fewer layers does, are left out
    of its configuration.

    Raises ValueError for a number below 1 or above what there are.
    """
    found = prunable_units(model)
    there = {name: count for name, count in counts.items() if name in found}
    for name, count in there.items():
        units = found[name]
        if not isinstance(count, int) or not 1 <= count <= units.count:
            raise ValueError(f"pruned_units: {count} units in {name}, which has 1 to {units.count}")
        units.keep(torch.arange(count, device="cpu"))  # new models may be built without memory
    model.config.pruned_units = there
