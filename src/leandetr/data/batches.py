"""From the items of a data set to batches.

What a loader's workers send is small and little: pixels of 8 bits, and every field of the targets as one tensor. Normalised
values and masks, 16 times as much, are made of it on the device where the model runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, TypedDict, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from leandetr.data.transforms import normalised
from leandetr.structures import Batch, Preprocessing, Target


class Images(Protocol):
    """A data set of images: of detection or of classification.

    preprocessing: how its pixels become a model's input. stored(index): a view, (3, h, w) uint8, and its target or class.
    """

    @property
    def preprocessing(self) -> Preprocessing: ...

    def __len__(self) -> int: ...

    def stored(self, index: int) -> tuple[Tensor, Target | int]: ...


class Packed(TypedDict):
    """A batch as it travels.

    pixels: (B, 3, H, W), zero where padded, at the right and the bottom. sizes: (B, 2) int64, (height, width) of each image in
    it. padded: whether any is smaller. targets: name of a field -> all images' values below each other, with "group/field" in
    groups of fields. counts: name of a field -> how many rows of it each image has.
    """

    pixels: Tensor
    sizes: Tensor
    padded: bool
    targets: dict[str, Tensor]
    counts: dict[str, list[int]]


def pack(items: Sequence[tuple[Tensor, Target | int]]) -> Packed:
    """Images (3, h, w), in 8 bits or as floats, and their targets or classes; see `Packed`."""
    images = [image for image, _ in items]
    targets = [_fields(target if isinstance(target, Mapping) else {"class": torch.tensor([target])}) for _, target in items]
    height, width = (max(image.shape[side] for image in images) for side in (1, 2))
    padded = any(image.shape[1:] != (height, width) for image in images)
    make = torch.zeros if padded else torch.empty
    pixels = make(len(items), 3, height, width, dtype=images[0].dtype)
    for place, image in zip(pixels, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    return Packed(
        pixels=pixels,
        sizes=torch.tensor([image.shape[1:] for image in images]),
        padded=padded,
        targets={name: torch.cat([target[name] for target in targets]) for name in targets[0]},
        counts={name: [len(target[name]) for target in targets] for name in targets[0]},
    )


def unpack(packed: Packed, preprocessing: Preprocessing, device: torch.device | str | None = None) -> Batch:
    """The batch: its images on a device, by default where they are, and the labels where they are. Images of classification
    have `labels` (B,) int64 and no mask. On a GPU the channels of a pixel lie side by side, as convolutions read them."""
    if device is not None:
        moved: Any = {name: packed[name].to(device, non_blocking=True) for name in ("pixels", "sizes")}
        packed = {**packed, **moved}
    pixels = packed["pixels"]
    layout = torch.channels_last if pixels.is_cuda else torch.contiguous_format
    return _batch(packed, normalised(pixels.contiguous(memory_format=layout), preprocessing))


def collate(items: Sequence[tuple[Tensor, Target | int]]) -> Batch:
    """Normalised images (3, h, w) of several sizes and their targets or classes -> one batch, as `unpack` makes it."""
    packed = pack(items)
    return _batch(packed, packed["pixels"])


class Loader:
    """The batches of a data set or of a part of it, in order: read by workers in 8 bits, normalised on the device.

    Args:
        dataset: whose `stored` is read.
        workers: processes that read images; 0 reads them here.
        device: of `pixel_values` and `pixel_mask`. The labels stay on the CPU.
    """

    def __init__(
        self,
        dataset: Images | Subset[Any],
        batch_size: int,
        workers: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.device = torch.device(device)
        whole: Any = dataset.dataset if isinstance(dataset, Subset) else dataset
        self.preprocessing: Preprocessing = whole.preprocessing
        pinned = self.device.type == "cuda"
        self._loader = DataLoader(Stored(dataset), batch_size, num_workers=workers, collate_fn=pack, pin_memory=pinned)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        for packed in self._loader:
            yield unpack(packed, self.preprocessing, self.device)


class Stored(Dataset):
    """The items of a data set, or of a part of one, in 8 bits, as `pack` takes them."""

    def __init__(self, dataset: Images | Subset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Target | int]:
        if isinstance(self.dataset, Subset):
            return cast(Any, self.dataset.dataset).stored(self.dataset.indices[index])
        return self.dataset.stored(index)


def _batch(packed: Packed, pixel_values: Tensor) -> Batch:
    targets: Any = [{} for _ in packed["sizes"]]
    for name, values in packed["targets"].items():
        *group, field = name.split("/")
        for target, own in zip(targets, values.split(packed["counts"][name]), strict=True):
            (target.setdefault(group[0], {}) if group else target)[field] = own
    if "class" in packed["targets"]:
        return cast(Batch, {"pixel_values": pixel_values, "labels": packed["targets"]["class"]})
    mask = torch.ones_like(pixel_values[:, 0], dtype=torch.int64)
    if packed["padded"]:
        height, width = packed["sizes"][:, :, None].unbind(1)
        rows, columns = (torch.arange(side, device=mask.device) for side in mask.shape[1:])
        mask = ((rows < height)[:, :, None] & (columns < width)[:, None]).to(torch.int64)
        pixel_values.masked_fill_(mask[:, None] == 0, 0.0)
    return Batch(pixel_values=pixel_values, pixel_mask=mask, labels=targets, padded=packed["padded"])


def _fields(target: Mapping[str, Any]) -> dict[str, Tensor]:
    """Every tensor of a target by its name, "group/field" within groups."""
    found: dict[str, Tensor] = {}
    for name, value in target.items():
        found |= {f"{name}/{field}": own for field, own in value.items()} if isinstance(value, Mapping) else {name: value}
    return found
