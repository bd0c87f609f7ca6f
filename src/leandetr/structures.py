"""What flows through the library: batches, queries, detector outputs, detections, and the two facts every model carries.

Shapes use B images, N queries, L decoder layers, C classes (plus one no-object column for softmax heads), D channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NotRequired, TypeAlias, TypedDict

from torch import Tensor

from leandetr.errors import UserError, unknown

#: A `...ForObjectDetection` model of transformers. What its parts are called differs by family and is read by name; no type of
#: transformers or PyTorch says it.
DetectionModel: TypeAlias = Any


class Objects(TypedDict):
    """What a set loss reads of one image.

    class_labels: (n,) int64, contiguous class ids. boxes: (n, 4) float32, (cx, cy, w, h) relative to the image, in [0, 1].
    """

    class_labels: Tensor
    boxes: Tensor


class Target(Objects):
    """The objects of one image, as transformers' detectors read them.

    Boxes are relative to `size`.
    image_id: (1,) int64. orig_size: (2,) int64, (height, width) of the photograph. size: (2,) int64, (height, width) of
    the image in the batch without its padding. detections: a teacher's of the same view, where the data set was given some:
    class_labels (m,), boxes (m, 4) like the objects', scores (m,). view: (1,) int64, which of an image's views this is, where
    the data set has a fixed number of them.
    """

    image_id: Tensor
    orig_size: Tensor
    size: Tensor
    detections: NotRequired[dict[str, Tensor]]
    view: NotRequired[Tensor]


class Batch(TypedDict):
    """What a data loader yields: a mapping, so that the training engine can move it to a device.

    pixel_values: (B, 3, H, W) float32, normalised, zero where padded. pixel_mask: (B, H, W) int64, 1 where there is image.
    labels: one `Target` an image. padded: False where `pixel_mask` is 1 everywhere, which a device would have to be asked;
    absent where nobody has looked.
    """

    pixel_values: Tensor
    pixel_mask: Tensor
    labels: list[Target]
    padded: NotRequired[bool]


@dataclass
class Queries:
    """The decoder's inputs. None where a family has no such thing.

    Attributes:
        content: (B, N, D).
        position: (B, N, D) position embeddings (anchor logits (B, N, 4) in DAB-DETR).
        reference: (B, N, 2 or 4) reference points, (cx, cy[, w, h]) in [0, 1].
    """

    content: Tensor | None = None
    position: Tensor | None = None
    reference: Tensor | None = None


@dataclass
class Memory:
    """What the decoder attends to, and the recorded call that lets it be run again on other queries.

    tokens: (B, S, D) encoder output. shapes: (h, w) of every feature level in the order in which they are flattened into
    S = sum(h * w). call: the decoder's keyword arguments with the main queries only (denoising and groups stripped).
    """

    tokens: Tensor
    shapes: list[tuple[int, int]]
    call: dict[str, Any]


@dataclass
class Proposals:
    """What an encoder says of the cells that it has chosen as queries: logits (B, N, C), boxes (B, N, 4) in (cx, cy, w, h)."""

    logits: Tensor
    boxes: Tensor


LARGEST_SIDE = 8192  # pixels of an image as a detector takes it; a file that asks for more is damaged
FILTERS = ("nearest", "bilinear", "bicubic")

#: fields of a `DetectorOutput` that are filled when they are asked for
ASKED = frozenset({"attended", "encoder_attended", "self_attention", "cross_attention"})


@dataclass
class DetectorOutput:
    """Every decoder layer's answer for the main queries; the last layer is the prediction.

    Attributes:
        logits: (L, B, N, C).
        boxes: (L, B, N, 4), (cx, cy, w, h) in [0, 1].
        hidden: (L, B, N, D), after the decoder's final norm where it has one.
        queries: the decoder's inputs.
        memory: what the decoder attends to, as tokens, with what `Detector.decode` needs.
        features: the same as maps, one (B, D, h, w) a level.
        loss: the family's own detection loss, when labels were given.
        attended: (L, B, N, D) co-attended features, when asked for: what every layer's attention to the memory gathered, before
            its output projection; None in a family without such attention.
        encoder_attended: when asked for, one (B, S, D) an encoder layer, the answer of its self-attention.
        self_attention, cross_attention: (L, B, N, N) and (L, B, N, S) when asked for, the mean of the heads, rows that sum to
            1, see `attention_maps`; None of a family without such attention.
        proposals: of the encoder, where it chooses the queries by class; they come before the decoder's first layer.
        patches: (B, C, h, w) of a vision model, where that is what answered.
        distillation: the same for the distillation queries, where the detector has such a second set.
    """

    logits: Tensor
    boxes: Tensor
    hidden: Tensor
    queries: Queries
    memory: Memory
    features: list[Tensor] = field(default_factory=list)
    loss: Tensor | None = None
    attended: Tensor | None = None
    encoder_attended: list[Tensor] = field(default_factory=list)
    self_attention: Tensor | None = None
    cross_attention: Tensor | None = None
    proposals: Proposals | None = None
    patches: Tensor | None = None
    distillation: DetectorOutput | None = None


@dataclass
class Detections:
    """The answer for one image, the highest score first.

    Attributes:
        scores: (n,) in [0, 1].
        labels: (n,) int64, contiguous class ids.
        boxes: (n, 4), (x0, y0, x1, y1) in pixels of the original photograph.
    """

    scores: Tensor
    labels: Tensor
    boxes: Tensor


@dataclass(frozen=True)
class ClassMap:
    """Contiguous class id <-> the data set's own category id <-> name, stored in every checkpoint.

    COCO's category ids run from 1 to 90 with gaps; a detector's classes run from 0 to C - 1 without any.

    >>> classes = ClassMap(names=("person", "zebra"), dataset_ids=(1, 24))
    >>> classes.dataset_ids[1], classes.contiguous(24)
    (24, 1)
    """

    names: tuple[str, ...]
    dataset_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.dataset_ids):
            raise ValueError(f"{len(self.names)} class names for {len(self.dataset_ids)} ids")

    def __len__(self) -> int:
        return len(self.names)

    def contiguous(self, dataset_id: int) -> int:
        """The contiguous id of a data set's category id; KeyError where there is none."""
        try:
            return self.dataset_ids.index(dataset_id)
        except ValueError:
            raise KeyError(dataset_id) from None


@dataclass(frozen=True)
class Preprocessing:
    """From a photograph to a model's pixel values: resize, scale to [0, 1], subtract `mean`, divide by `std`. Another scale is
    that of `mean` and `std`: bytes as they are have 0 and 1 / 255.

    Raises UserError for sides that are no whole numbers from 1 to LARGEST_SIDE, for a mean or std that is not three finite
    numbers, a std with a zero, and an unknown filter.

    Attributes:
        size: fixed (height, width), aspect ratio not kept; or None, and then the shorter side becomes `shortest_edge` unless
            the longer one would exceed `longest_edge`.
        shortest_edge: in pixels, see `size`.
        longest_edge: in pixels, see `size`.
        mean: one value a channel (red, green, blue).
        std: one value a channel.
        resample: how pixels are interpolated: "nearest", "bilinear" or "bicubic".
        antialias: whether an image that becomes smaller is low-pass filtered first; without, it is also resized as floats and
            not as bytes, which is how RF-DETR's processor does it.
    """

    size: tuple[int, int] | None = (640, 640)
    shortest_edge: int | None = None
    longest_edge: int | None = None
    mean: Sequence[float] = (0.0, 0.0, 0.0)
    std: Sequence[float] = (1.0, 1.0, 1.0)
    resample: str = "bilinear"
    antialias: bool = True

    def __post_init__(self) -> None:
        if (self.size is None) == (self.shortest_edge is None):
            raise ValueError("preprocessing takes either a fixed size or a shortest edge")
        sides = [*(self.size or ()), *(edge for edge in (self.shortest_edge, self.longest_edge) if edge is not None)]
        if not all(isinstance(side, int) and 1 <= side <= LARGEST_SIDE for side in sides) or len(self.size or "hw") != 2:
            raise UserError(f"images are resized to {sides}; give whole numbers of pixels from 1 to {LARGEST_SIDE}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != 3 or not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
                raise UserError(f"the {name} of pixels is {values}; give a finite number for red, green and blue each")
        if not all(self.std):
            raise UserError(f"the std of pixels is {self.std}, by which nothing can be divided; give numbers other than 0")
        if self.resample not in FILTERS:
            raise unknown("resample", self.resample, FILTERS)


def size_in_words(size: tuple[int, int] | int) -> str:
    """A size of images: (height, width) in pixels, or the shorter side.

    >>> size_in_words((480, 640)), size_in_words(800)
    ('480 x 640', 'shorter side 800')
    """
    return f"shorter side {size}" if isinstance(size, int) else f"{size[0]} x {size[1]}"
