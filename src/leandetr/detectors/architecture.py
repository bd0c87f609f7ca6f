"""The model class of a configuration with what leandetr builds into transformers' own: aligned queries, pruned units."""

from __future__ import annotations

from typing import Any

from transformers import AutoModelForObjectDetection, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING

from leandetr.detectors.alignment import align_queries, alignment_of
from leandetr.detectors.prunable import apply_counts, pruned_units


def class_to_load(config: PreTrainedConfig) -> Any:
    """What `from_pretrained` is called on: transformers' Auto class, or one whose models are built with the alignment and the
    numbers of units that the configuration names, before the weights come."""
    which, counts = alignment_of(config), pruned_units(config)
    if which is None and not counts:
        return AutoModelForObjectDetection
    plain: Any = MODEL_FOR_OBJECT_DETECTION_MAPPING[type(config)]

    class Changed(plain):
        def __init__(self, config: PreTrainedConfig, *arguments: Any, **options: Any) -> None:
            super().__init__(config, *arguments, **options)
            if counts:
                apply_counts(self, counts)
            if which is not None:
                align_queries(self, which)
            self.__class__ = plain  # what it is saved as

    Changed.__name__ = plain.__name__  # by which transformers chooses the loss
    return Changed
