"""What low-bit training logs of its grids."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from leandetr.detectors.detector import Detector
from leandetr.quantization.layers.trainable import LearnedGrid


class LogClipped(TrainerCallback):
    """Adds to every log of the loss which share of its values each grid cut off in the step before: `clipped/<layer>/input`,
    `clipped/<layer>/weight`, and `clipped/<attention>/<operand>`."""

    def __init__(self, detector: Detector) -> None:
        self.grids: dict[str, LearnedGrid] = {}
        for name, module in detector.model.named_modules():
            if isinstance(module, LearnedGrid):
                name = name.removesuffix(".output").replace("weight_grid", "weight").replace(".slots", "")
                self.grids["clipped/" + "/".join(name.rsplit(".", 1))] = module

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        last = (state.global_step + 1) % args.logging_steps == 0
        for grid in self.grids.values():
            grid.counting = last

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs is not None and "loss" in logs:
            found = {name: grid.clipped for name, grid in self.grids.items() if grid.clipped is not None}
            if found:
                shares = torch.stack(list(found.values())).tolist()
                logs |= {name: round(share, 5) for name, share in zip(found, shares, strict=True)}
