"""The model class of a configuration with what leandetr builds into transformers' own: aligned queries, pruned layers."""

from __future__ import annotations

from typing import Any

from transformers import AutoModelForObjectDetection, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING

from leandetr.detectors.alignment import align_queries, alignment_of
from leandetr.detectors.feed_forward import apply_widths, pruned_widths


def class_to_load(config: PreTrainedConfig) -> Any:
    """What `from_pretrained` is called on: transformers' Auto class, or one whose models are built with the alignment and the
    widths that the configuration names, before the weights come."""
    which, widths = alignment_of(config), pruned_widths(config)
    if which is None and not widths:
        return AutoModelForObjectDetection
    plain: Any = MODEL_FOR_OBJECT_DETECTION_MAPPING[type(config)]

    class Changed(plain):
        def __init__(self, config: PreTrainedConfig, *arguments: Any, **options: Any) -> None:
            super().__init__(config, *arguments, **options)
            if widths:
                apply_widths(self, widths)
            if which is not None:
                align_queries(self, which)
            self.__class__ = plain  # what it is saved as

    Changed.__name__ = plain.__name__  # by which transformers chooses the loss
    return Changed
