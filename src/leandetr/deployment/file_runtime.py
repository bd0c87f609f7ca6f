"""What all engines that run exported files share."""

from __future__ import annotations

from pathlib import Path

import torch
from numpy.typing import NDArray
from torch import Tensor

from leandetr.deployment.metadata import Metadata
from leandetr.deployment.runtime import Runtime
from leandetr.errors import UserError, reason
from leandetr.structures import Batch, Detections


class FileRuntime(Runtime):
    """What the engines that run exported files share; they set `inputs`, the names of the graph's, and implement `infer`.

    title: the engine as sentences call it.
    """

    title: str
    inputs: set[str]

    def infer(self, feed: dict[str, NDArray], outputs: list[str]) -> list[NDArray]:
        """The graph's inputs by name -> those of its outputs that are named."""
        raise NotImplementedError

    def run(self, pixel_values: Tensor, pixel_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        given = {"pixel_values": pixel_values, "pixel_mask": pixel_mask}
        feed = {
            name: tensor.contiguous().numpy() for name, tensor in given.items() if tensor is not None and name in self.inputs
        }
        logits, boxes = self.infer(feed, ["logits", "boxes"])
        columns = self.metadata.head.columns(len(self.class_map))
        if logits.ndim != 3 or logits.shape[2] != columns or boxes.shape != (*logits.shape[:2], 4):
            raise UserError(
                f"{self.artifact} answers with logits {logits.shape} and boxes {boxes.shape}, and its classes need (B, N, "
                f"{columns}) and (B, N, 4); export it again"
            )
        return torch.from_numpy(logits), torch.from_numpy(boxes)

    def run_end_to_end(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """images (B, H, W, 3) uint8 RGB -> scores (B, k), labels (B, k) and boxes (B, k, 4), (x0, y0, x1, y1) in pixels of the
        images; for files that are end to end."""
        scores, labels, boxes = self.infer({"images": images.contiguous().numpy()}, ["scores", "labels", "boxes"])
        return torch.from_numpy(scores), torch.from_numpy(labels), torch.from_numpy(boxes)

    def __call__(self, batch: Batch) -> list[Detections]:
        if not self.metadata.end_to_end:
            return super().__call__(batch)
        found = []
        for pixels, target in zip(batch["pixel_values"], batch["labels"], strict=True):
            height, width = target["size"].tolist()  # without the padding
            image = pixels[:, :height, :width].round().to(torch.uint8).permute(1, 2, 0)
            found.append(Detections(*(answer[0] for answer in self.run_end_to_end(image[None]))))
        return found


def read_metadata(path: Path, text: str | None) -> Metadata:
    """What an exported file says about itself. Raises UserError where it says nothing, or what another version wrote."""
    if text is None:
        raise UserError(f"{path} does not say what its classes and preprocessing are; export the detector with leandetr")
    try:
        return Metadata.from_json(text)
    except (ValueError, UserError) as error:
        raise UserError(f"{path} was exported by another version of leandetr ({reason(error)}); export it again") from error
