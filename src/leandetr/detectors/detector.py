"""One interface over every family: forward, the same decoder on other queries, predictions, saving."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from leandetr.detectors.attention import Taps, leave_out_cudnn_attention, tapping
from leandetr.detectors.attention_maps import mapping, own_rows
from leandetr.detectors.families.family import DecoderRun
from leandetr.detectors.families.registry import family_of
from leandetr.detectors.postprocess import postprocess
from leandetr.detectors.preprocessing import write_preprocessing
from leandetr.detectors.query_sets import has_distillation_queries, keep_answers, queries_of
from leandetr.files import writing_files
from leandetr.heads import Head
from leandetr.structures import (
    Batch,
    ClassMap,
    DetectionModel,
    Detections,
    DetectorOutput,
    Memory,
    Preprocessing,
    Proposals,
    Queries,
    Target,
)


class Detector(nn.Module):
    """A transformers detection model together with its preprocessing and its classes.

    Building one keeps the process from cuDNN's attention, see `leave_out_cudnn_attention`.

    Args:
        model: a `...ForObjectDetection` model of one of the families in `families/`.
        preprocessing: how photographs become its pixel values.
        class_map: its contiguous classes and the data set's own ids of them.

    Examples:
        >>> detector = load("runs/teacher")                        # doctest: +SKIP
        >>> output = detector(pixel_values)                        # doctest: +SKIP
        >>> layers, images, queries, classes = output.logits.shape    # doctest: +SKIP
    """

    def __init__(self, model: DetectionModel, preprocessing: Preprocessing, class_map: ClassMap) -> None:
        super().__init__()
        leave_out_cudnn_attention()
        self.model = model
        self.preprocessing = preprocessing
        self.class_map = class_map
        self.family = family_of(model.config)
        self._frozen: list[nn.Module] = []
        model.register_forward_hook(keep_answers)

    @property
    def config(self) -> PreTrainedConfig:
        return self.model.config

    @property
    def head(self) -> Head:
        """What the columns of its logits mean."""
        return self.family.head

    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        labels: list[Target] | None = None,
        asked: Collection[str] = (),
        padded: bool = True,
    ) -> DetectorOutput:
        """pixel_values (B, 3, H, W) normalised, pixel_mask (B, H, W) with 1 where there is image, labels of the B images.
        asked: those of `ASKED` that the output is to have. padded: False where the mask is known to be 1 everywhere: the model
        does without, which is faster and the same.

        The output's `loss` is the family's own detection loss over all layers, encoder proposals and denoising groups.
        """
        inside = labels is not None and self.family.labels_enter_model(self.training)
        arguments = {"labels": labels} if inside else {}
        switched = self.family.switched(self.model, replay=False)
        gathered = {"attended", "encoder_attended"} & set(asked)
        tap = tapping(self.model.model, self.family) if gathered else nullcontext(Taps())
        look = mapping(self.model, self.family, asked)
        with switched, self._recording() as runs, self._single_level() as level, tap as taps, look as maps:
            answer = self.model(pixel_values=pixel_values, pixel_mask=pixel_mask if padded else None, **arguments)
        run = runs[0]
        logits, boxes, hidden = self.family.layers(self.model, run)
        shapes = self.family.shapes(self.model, run, level[0] if level else None)
        co_attended = torch.stack(taps.decoder) if taps.decoder else None

        def part(queries: slice) -> DetectorOutput:
            call = self._main_call(run, queries)
            memory = Memory(tokens=call["encoder_hidden_states"], shapes=shapes, call=call)
            own = (logits[:, :, queries], boxes[:, :, queries], hidden[:, :, queries])
            output = DetectorOutput(*own, self.family.read_queries(call), memory, _maps(memory))
            output.attended = None if co_attended is None else co_attended[:, :, queries]
            output.encoder_attended = taps.encoder
            return _with_maps(output, maps, queries)

        if has_distillation_queries(self.config):
            output = part(queries_of(self.config, "object"))
            output.distillation = part(queries_of(self.config, "distillation"))
        else:
            output = part(self.family.extra_queries(self.model, run))
        if self.family.proposes_classes:
            output.proposals = Proposals(*self.family.proposals(self.model, answer))
        if labels is not None:
            output.loss = (
                answer.loss * self.family.share_of_boxes(labels)
                if inside
                else self.family.loss(self.model, answer, output.logits, output.boxes, labels)
            )
        return output

    def decode(self, queries: Queries, memory: Memory, asked: Collection[str] = ()) -> DetectorOutput:
        """Run the decoder on other queries (B, N', ...) over the memory of an earlier forward; the main group is untouched.
        asked: which maps of its attention, `self_attention` and `cross_attention`, the output is to have.

        Raises ValueError where the queries lack something that this family's decoder takes.
        """
        call = memory.call | self.family.write_queries(queries)
        look = mapping(self.model, self.family, asked)
        with self.family.switched(self.model, replay=True), self._recording() as runs, look as maps:
            self.model.model.decoder(**call)
        logits, boxes, hidden = self.family.layers(self.model, runs[0])
        output = DetectorOutput(logits, boxes, hidden, queries, replace(memory, call=call), _maps(memory))
        return _with_maps(output, maps, slice(None))

    def freeze(self, part: Literal["backbone", "encoder"]) -> None:
        """Let a part, or all up to the memory, keep its weights, and its norms their statistics, whatever is trained."""
        frozen = [self.family.backbone(self.model), *(self.family.encoder(self.model) if part == "encoder" else ())]
        for module in frozen:
            module.requires_grad_(False)
        self._frozen = [module for module in frozen if isinstance(module, nn.Module)]
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    @torch.no_grad()
    def predict(self, batch: Batch, top_k: int = 100) -> list[Detections]:
        """The detections of every image of a batch, in pixels of the original photographs."""
        training = self.training
        self.eval()
        device = next(self.parameters()).device
        mask = batch["pixel_mask"].to(device) if batch.get("padded", True) else None
        output = self.model(pixel_values=batch["pixel_values"].to(device), pixel_mask=mask)
        self.train(training)
        sizes = torch.stack([target["orig_size"] for target in batch["labels"]])
        return postprocess(output.logits, output.pred_boxes, self.head, sizes, top_k)

    def not_finite(self) -> str | None:
        """The name of the first of the model's tensors that holds NaN or infinite numbers."""
        tensors = self.model.state_dict().items()
        return next((name for name, tensor in tensors if tensor.is_floating_point() and not tensor.isfinite().all()), None)

    def save(self, folder: Path) -> None:
        """Write `model.safetensors`, `preprocessor_config.json` and, last, `config.json`, each under its final name only when
        whole."""
        self.config.id2label = dict(enumerate(self.class_map.names))
        self.config.label2id = {name: index for index, name in enumerate(self.class_map.names)}
        self.config.dataset_category_ids = list(self.class_map.dataset_ids)
        with writing_files(Path(folder), last="config.json") as temporary:
            self.model.save_pretrained(temporary)
            write_preprocessing(temporary, self.preprocessing, self.head)

    def _main_call(self, run: DecoderRun, main: slice) -> dict:
        """The recorded call with the main queries alone, as it would be made in evaluation."""
        call = dict(run.call)
        if main != slice(None):
            for name in self.family.arguments.values():
                call[name] = call[name][:, main]
            call |= dict.fromkeys(self.family.group_masks)
        return call

    @contextmanager
    def _recording(self) -> Iterator[list[DecoderRun]]:
        """Record every call of the decoder while the block runs."""
        decoder = self.model.model.decoder
        runs: list[DecoderRun] = []
        states: list[Tensor] = []

        def after(_module: nn.Module, _args: Any, kwargs: dict[str, Any], output: Any) -> None:
            runs.append(DecoderRun(kwargs, output, list(states)))
            states.clear()

        handles = [decoder.register_forward_hook(after, with_kwargs=True)]
        handles += [
            layer.register_forward_hook(lambda _module, _args, output: states.append(_tensor(output)))
            for layer in decoder.layers
        ]
        try:
            yield runs
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def _single_level(self) -> Iterator[list[tuple[int, int]]]:
        """The (h, w) of the feature map, for families that flatten one map without telling its shape."""
        projection = self.family.projection(self.model)
        found: list[tuple[int, int]] = []
        if projection is None:
            yield found
            return
        handle = projection.register_forward_hook(lambda _module, _args, output: found.append(tuple(output.shape[-2:])))
        try:
            yield found
        finally:
            handle.remove()


def _tensor(output: Tensor | tuple) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def _with_maps(output: DetectorOutput, maps: Mapping[str, list[Tensor]], queries: slice) -> DetectorOutput:
    """With the attention maps of some of the queries in a call, where there are any. In LW-DETR's training groups of queries
    attend to themselves as further images, of which the first are the main group's."""
    images = output.logits.shape[1]
    if maps.get("self_attention"):
        output.self_attention = own_rows(torch.stack(maps["self_attention"])[:, :images], queries)
    if maps.get("cross_attention"):
        output.cross_attention = torch.stack(maps["cross_attention"])[:, :, queries]
    return output


def _maps(memory: Memory) -> list[Tensor]:
    """(B, S, D) tokens -> one (B, D, h, w) map a level."""
    levels = memory.tokens.split([h * w for h, w in memory.shapes], dim=1)
    return [tokens.transpose(1, 2).unflatten(2, shape) for tokens, shape in zip(levels, memory.shapes, strict=True)]
