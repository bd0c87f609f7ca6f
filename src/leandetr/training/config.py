"""How a detector is trained: one object, read from a recipe or from the command line."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from leandetr.checked import Checked
from leandetr.machine import reading_processes

Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what NumPy's generator takes


class Training(Checked):
    """Schedule and optimisation. Unknown keys are refused.

    Attributes:
        epochs: passes over the training images.
        max_steps: stop after so many optimiser steps instead.
        batch_size: images a step and process.
        accumulate: steps whose gradients are added up before one update.
        lr: peak learning rate of AdamW.
        backbone_lr: factor on it for the backbone (DETR: 0.1).
        layer_decay: factor on that for each further layer between a layer of the backbone and its end (`layer_decay.factors`);
            pretrained vision transformers: 0.65 to 0.8.
        freeze: a part that keeps its weights and statistics: the backbone, or all up to the memory (encoder).
        weight_decay: of AdamW; norms, biases and grids have none.
        grid_lr: factor on the rate for the steps and zero points of low-bit grids.
        grid_frozen: fraction of the training during which they keep what calibration gave them.
        schedule: "cosine" down to zero, or "step": times 0.1 at each of the `drops`.
        drops: fractions of the training, increasing; see `schedule`.
        warmup: fraction of the training during which the rate rises linearly from zero.
        clip: largest norm of the gradient.
        ema: decay of the weights' moving average, which is what is evaluated and kept; 0 is off.
        precision: "auto" takes bfloat16 where a GPU has it and float32 elsewhere; boxes are float32 in each. In float32 a GPU
            multiplies matrices in TF32 while it trains.
        compile: let torch.compile make the backbone's kernels, where most of a step's are; the first steps wait for it.
        gradient_checkpointing: compute the blocks of backbone, encoder and decoder a second time in the backward pass, in
            place of keeping what happens inside (`recomputed.py`): less memory, more time, the same gradients.
        sync_batchnorm: with several processes, let the norms that train see the statistics of all of them; needs GPUs.
        augment: name of a training transform (`data/transforms.py`); "auto" takes "ssd" for fixed sizes and "detr" for others.
        views: every image has so many augmented views, which come in turn, one an epoch, and are the same for every seed; by
            default each epoch draws new ones. A cached teacher needs a number (or augment "none", which has one view).
        evaluate_every: epochs between evaluations; the last epoch is always evaluated, and the best by AP is kept.
        keep_epochs: epochs, counted from 1, after which the detector is also kept, for `leandetr analyze`; see `KeepEpochs`.
        cache: keep every photograph decoded, in "memory" or on "disk" (in the user's cache): the same views without decoding.
        workers: processes that read images; by default all cores but two, at most eight.
        tensorboard: also write for TensorBoard.
        seed: of weights, order and augmentation.
    """

    later: ClassVar[frozenset[str]] = frozenset(
        {"freeze", "layer_decay", "compile", "gradient_checkpointing", "sync_batchnorm", "cache"}
    )

    epochs: int = Field(50, ge=1)
    max_steps: int | None = Field(None, ge=1)
    batch_size: int = Field(8, ge=1)
    accumulate: int = Field(1, ge=1)
    lr: float = Field(1e-4, gt=0, allow_inf_nan=False)
    backbone_lr: float = Field(0.1, ge=0)
    layer_decay: float | None = Field(None, gt=0, le=1)
    weight_decay: float = Field(1e-4, ge=0)
    freeze: Literal["backbone", "encoder"] | None = None
    grid_lr: float = Field(10.0, ge=0)
    grid_frozen: float = Field(0.0, ge=0, le=1)
    schedule: Literal["cosine", "step"] = "cosine"
    drops: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.8,)
    warmup: float = Field(0.05, ge=0, lt=1)
    clip: float = Field(0.1, gt=0)
    ema: float = Field(0.999, ge=0, lt=1)
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    compile: bool | None = None
    gradient_checkpointing: bool | None = None
    sync_batchnorm: bool | None = None
    augment: str = "auto"
    views: int | None = Field(None, ge=1)
    evaluate_every: int = Field(1, ge=1)
    keep_epochs: tuple[Annotated[int, Field(ge=1)], ...] = ()
    cache: Literal["memory", "disk"] | None = None
    workers: int | None = Field(None, ge=0)
    tensorboard: bool = False
    seed: Seed = 0

    @model_validator(mode="after")
    def _increase(self) -> Training:
        if list(self.drops) != sorted(set(self.drops)):
            raise ValueError(f"drops: {', '.join(map(str, self.drops))} do not increase; name each fraction once, in order")
        return self

    @model_validator(mode="after")
    def _are_reached(self) -> Training:
        if self.max_steps is None and max(self.keep_epochs, default=0) > self.epochs:
            raise ValueError(f"keep_epochs: there is no epoch {max(self.keep_epochs)} of {self.epochs}; name earlier ones")
        return self

    @model_validator(mode="after")
    def _go_together(self) -> Training:
        if self.compile and self.gradient_checkpointing:
            raise ValueError("gradient_checkpointing: compiled kernels keep what they need themselves; leave out it or compile")
        return self

    def passes(self, images: int, processes: int = 1) -> int:
        """Over so many training images, the last one maybe not whole."""
        if self.max_steps is None:
            return self.epochs
        return math.ceil(self.max_steps / math.ceil(images / (self.batch_size * self.accumulate * processes)))

    def loader_workers(self) -> int:
        """All cores but two, at most eight, where no number is given: on a small CPU the training needs them itself."""
        return reading_processes() if self.workers is None else self.workers

    def factor(self, step: int, steps: int) -> float:
        """The learning rate at `step` of `steps`, as a factor on the peak."""
        warm = round(self.warmup * steps)
        if step < warm:
            return (step + 1) / warm
        progress = min(1.0, (step - warm) / max(1, steps - warm))
        if self.schedule == "step":
            return 0.1 ** sum(step >= drop * steps for drop in self.drops)
        return 0.5 * (1 + math.cos(math.pi * progress))
