"""What all engines share: a batch goes in, one `Detections` an image comes out.

Evaluation, benchmark and prediction take any of them and never ask which. They share the preprocessing (done when the batch is
made, as `preprocessing` says) and the post-processing; only `run` differs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from leandetr.data.batches import pack, unpack
from leandetr.data.images import pixels_of, read_pixels, to_rgb
from leandetr.data.transforms import DetectionTransform, eval_transform, untouched_transform
from leandetr.deployment.metadata import Metadata
from leandetr.detectors.postprocess import postprocess
from leandetr.drawing import above
from leandetr.errors import UserError
from leandetr.structures import Batch, ClassMap, Detections, Preprocessing, Target


class Runtime:
    """An artefact opened on an engine.

    Attributes:
        name: the engine, as tables show it.
        artifact: the file, folder or hub id that it runs.
        size_bytes: of the artefact's weights and graph, as written.
        metadata: what the artefact says about itself.
        device: where it computes.
        unpacked, unpack_seconds: how many integer weights were made floats when it was loaded, and how long that took.
    """

    name: str
    device: torch.device = torch.device("cpu")
    unpacked: int = 0
    unpack_seconds: float = 0.0

    def __init__(self, artifact: str, size_bytes: int, metadata: Metadata) -> None:
        self.artifact, self.size_bytes, self.metadata = artifact, size_bytes, metadata

    @property
    def preprocessing(self) -> Preprocessing:
        return self.metadata.preprocessing

    @property
    def class_map(self) -> ClassMap:
        return self.metadata.class_map

    @property
    def parameters(self) -> int:
        return self.metadata.parameters

    @property
    def theoretical_speedup(self) -> float | None:
        return self.metadata.theoretical_speedup

    @property
    def transform(self) -> DetectionTransform:
        """What makes a photograph the pixels that this takes."""
        make = untouched_transform if self.metadata.end_to_end else eval_transform
        return make(self.preprocessing)

    def run(self, pixel_values: Tensor, pixel_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """pixel_values (B, 3, H, W) and, where the size is not fixed, pixel_mask (B, H, W) -> logits (B, N, C), boxes (B, N, 4)
        in (cx, cy, w, h) of [0, 1], on the CPU."""
        raise NotImplementedError

    def __call__(self, batch: Batch) -> list[Detections]:
        mask = batch["pixel_mask"] if self.preprocessing.size is None else None
        logits, boxes = self.run(batch["pixel_values"], mask)
        if logits.isnan().any() or boxes.isnan().any():
            raise UserError(
                f"{self.artifact} on {self.name} answers with numbers that are not finite; export or train it again"
            )
        sizes = torch.stack([target["orig_size"] for target in batch["labels"]])
        return postprocess(logits, boxes, self.metadata.head, sizes)

    def predict(self, image: str | Path | Image.Image | NDArray, threshold: float = 0.3) -> Detections:
        """What one photograph shows, of at least a score of `threshold`, the best first: scores (n,), labels (n,), which are
        places in `class_map.names`, and boxes (n, 4), (x0, y0, x1, y1) in its pixels.

        image: a file, which is turned upright as its EXIF says, a PIL image, or (H, W, 3) uint8 RGB. To answer batches, call
        the runtime. Raises UserError for what is no image.
        """
        photograph = _opened(image)
        pixels, boxes, labels = self.transform(photograph, torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), 0)
        target = Target(
            class_labels=labels,
            boxes=boxes,
            image_id=torch.tensor([0]),
            orig_size=torch.tensor(photograph.shape[-2:]),
            size=torch.tensor(pixels.shape[-2:]),
        )
        return above(self(unpack(pack([(pixels, target)]), self.transform.preprocessing))[0], threshold)


def _opened(image: str | Path | Image.Image | NDArray) -> Tensor:
    """(3, h, w) uint8."""
    if isinstance(image, str | Path):
        return read_pixels(Path(image))
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size:
        return torch.from_numpy(image.copy()).permute(2, 0, 1)
    if isinstance(image, Image.Image):
        return pixels_of(to_rgb(image))
    shown = f"{image.dtype} of {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
    raise UserError(f"an image cannot be {shown}; give a path, a PIL image, or uint8 of (height, width, 3)")
