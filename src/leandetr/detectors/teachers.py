"""Detectors of torchvision (Faster R-CNN, RetinaNet, FCOS) as teachers: they give detections, and no queries or features.

They are named as torchvision names them. `fasterrcnn_resnet50_fpn` has torchvision's own COCO weights, from its cache or the
network; `fasterrcnn_resnet50_fpn:weights.pth` has those of a file, `.safetensors` or a pickle of which nothing but tensors is
read. `published_classes` says what the classes of a file are called.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights

from leandetr.detectors.checkpoints.published_classes import BACKGROUND, published_classes
from leandetr.detectors.checkpoints.state_dict import read_checkpoint
from leandetr.detectors.names import TORCHVISION
from leandetr.errors import UserError, unknown
from leandetr.heads import Head
from leandetr.structures import Batch, ClassMap, Detections, Preprocessing


class ClassHead(NamedTuple):
    """head: what its columns mean. bias: its name. values: how many of the bias belong to one class (RetinaNet: a cell's
    anchors)."""

    head: Head
    bias: str
    values: int


#: kind of detector, with which its name begins -> its class head
CLASS_HEADS = {
    "fasterrcnn": ClassHead(Head.SOFTMAX, "roi_heads.box_predictor.cls_score.bias", 1),
    "retinanet": ClassHead(Head.SIGMOID, "head.classification_head.cls_logits.bias", 9),
    "fcos": ClassHead(Head.SIGMOID, "head.classification_head.cls_logits.bias", 1),
}


class TorchvisionDetector(nn.Module):
    """One of `TORCHVISION` in evaluation mode, with its classes.

    Args:
        source: what it was named, for errors and tables.
        model: takes a list of images (3, h, w) in [0, 1] and returns their boxes, labels and scores.
        class_map: one class a label of the model; label 0 is Faster R-CNN's background.
        head: of its classes; the no-object column of Faster R-CNN is its background.

    Attributes:
        preprocessing: the size that the model itself would give an image; without normalisation, which it does itself.
    """

    def __init__(self, source: str, model: nn.Module, class_map: ClassMap, head: Head = Head.SIGMOID) -> None:
        super().__init__()
        self.source, self.model, self.class_map, self.head = source, model.eval(), class_map, head
        own: Any = model.transform
        self.preprocessing = Preprocessing(size=None, shortest_edge=own.min_size[-1], longest_edge=own.max_size)

    @torch.no_grad()
    def detect(self, images: Sequence[Tensor]) -> list[Detections]:
        """Images (3, h, w) in [0, 1], each of its own size -> their detections, in pixels of these images."""
        found = self.model.eval()(list(images))
        return [Detections(answer["scores"], answer["labels"], answer["boxes"]) for answer in found]

    def predict(self, batch: Batch) -> list[Detections]:
        """The detections of every image of a batch made with `preprocessing`, in pixels of the original photographs."""
        pixels = batch["pixel_values"].to(next(self.parameters()).device)
        sizes = [target["size"].tolist() for target in batch["labels"]]
        found = self.detect([image[:, :height, :width] for image, (height, width) in zip(pixels, sizes, strict=True)])
        for detections, target in zip(found, batch["labels"], strict=True):
            grown = (target["orig_size"] / target["size"]).flip(0).repeat(2)  # (width, height, width, height)
            detections.boxes = detections.boxes * grown.to(detections.boxes)
        return found


def names_torchvision(source: str | Path) -> bool:
    """Whether `load_torchvision` is meant: it begins as torchvision's names do, and is no path."""
    name = str(source).partition(":")[0]
    return name.partition("_")[0] in CLASS_HEADS and not Path(source).exists()


def load_torchvision(source: str) -> TorchvisionDetector:
    """NAME, or NAME:FILE with weights of one's own.

    Raises:
        UserError: no such name; weights that cannot be downloaded or read; a file of another detector (names the first three
            keys), or with classes that it does not name.
    """
    name, _, file = str(source).partition(":")
    if name not in TORCHVISION:
        raise unknown("torchvision detector", name, TORCHVISION)
    state = read_checkpoint(Path(file)) if file else _downloaded(name)
    head, bias, each = CLASS_HEADS[name.partition("_")[0]]
    if bias not in state:
        raise UserError(f"{file} is not of a {name}: it has no {bias}; name the detector that it was saved from")
    columns = len(state[bias]) // each
    class_map = published_classes(columns, Path(file) if file else None)
    if head.has_no_object and class_map.names[0] != BACKGROUND:
        raise UserError(
            f"{Path(file).with_suffix('.json')} begins with {class_map.names[0]!r}, and the first column of Faster R-CNN is "
            f"its background; begin with {BACKGROUND!r}"
        )
    model = get_model(name, weights=None, weights_backbone=None, num_classes=columns)
    _fill(model, state, str(source))
    if not file and get_model_weights(name).DEFAULT.name == "COCO_V1" and "resnet50_fpn" in name and "fcos" not in name:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 0.0  # these weights were trained so, and torchvision runs them so
    return TorchvisionDetector(str(source), model, class_map, head)


def _downloaded(name: str) -> Mapping[str, Tensor]:
    weights = get_model_weights(name).DEFAULT
    try:
        return weights.get_state_dict(progress=False, check_hash=True, weights_only=True, map_location="cpu")
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:  # URLError is an OSError
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise UserError(
            f"{name}: torchvision's weights cannot be had ({error}); put {weights.url} into {folder}, or name a file of your "
            f"own as {name}:FILE"
        ) from error


def _fill(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Raises UserError where names or shapes differ."""
    own = model.state_dict()
    counters = {key for key in own if key.endswith("num_batches_tracked")}  # frozen norms are saved without
    shapes = [key for key in own if key in state and own[key].shape != state[key].shape]
    wrong = sorted((own.keys() - state.keys() - counters) | (state.keys() - own.keys()) | set(shapes))
    if wrong:
        raise UserError(
            f"{source}: {len(wrong)} weights do not fit this detector ({', '.join(wrong[:3])}); name the one that the file was "
            "saved from"
        )
    model.load_state_dict(state, strict=False)
