"""What a training step waits for: reading images, and the step itself, as they are and in their plain form, in one run.

    python benchmarks/loader.py [--photographs FOLDER] [--side 640] [--images 24] [--batch 2] [--rounds 5]

Images a second of one process, from files of two sizes (the folder's photographs scaled, or noise) to a batch on its way:

    plain     Pillow, torchvision's transforms on whole images, normalised float32 and an int64 mask from the worker
    loader    what `leandetr train` reads: the same views, sent in 8 bits
    memory    the same with `training.cache=memory`: from pixels that are decoded already
    disk      the same with `training.cache=disk`, once the system has read the file

and milliseconds of one optimiser step of an RT-DETRv2 with a ResNet-18: each layer matched in turn by transformers' matchers
against all at once, a moving average tensor by tensor against all at once. On a GPU also with convolutions in either layout and
AdamW fused or not. Both forms alternate within every round; ratios are medians of the rounds' own.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from leandetr.data.batches import pack
from leandetr.data.decoded import Decoded
from leandetr.data.images import read_image, read_pixels
from leandetr.data.transforms import train_transform
from leandetr.detectors.create import create
from leandetr.losses.at_once import matching_at_once
from leandetr.structures import ClassMap, Preprocessing
from leandetr.training.ema import MovingAverage

SIZES = ((480, 640), (1080, 1920))
OBJECTS = 7


class Crop(v2.RandomIoUCrop):
    """An image without boxes stays whole."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return super().make_params(flat_inputs) if len(v2.get_bounding_boxes(flat_inputs)) else {}


def plain_view(path: Path, boxes: Tensor, preprocessing: Preprocessing, seed: int) -> Tensor:
    """The "ssd" view by torchvision's transforms, normalised."""
    image = read_image(path)
    fill = {tv_tensors.Image: [round(255 * mean) for mean in preprocessing.mean]}
    steps = v2.Compose(
        [
            v2.RandomZoomOut(fill=fill, side_range=(1.0, 2.0), p=0.5),
            v2.RandomApply([Crop()], p=0.8),
            v2.RandomHorizontalFlip(),
            v2.Resize(list(preprocessing.size or ()), antialias=True),
            v2.ColorJitter(brightness=0.125, contrast=0.3, saturation=0.3),
        ]
    )
    torch.manual_seed(seed)
    size = (image.height, image.width)
    pixels, _ = steps(F.to_image(image), tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size))
    pixels = F.normalize(F.to_dtype(pixels, torch.float32, scale=True), list(preprocessing.mean), list(preprocessing.std))
    return pixels.as_subclass(Tensor)


def plain_batch(paths: Sequence[Path], boxes: Sequence[Tensor], preprocessing: Preprocessing) -> tuple[Tensor, Tensor]:
    views = [plain_view(path, own, preprocessing, seed) for seed, (path, own) in enumerate(zip(paths, boxes, strict=True))]
    return torch.stack(views), torch.ones(len(views), *views[0].shape[1:], dtype=torch.int64)


def packed_batch(photographs: Iterable[Tensor], boxes: Sequence[Tensor], preprocessing: Preprocessing) -> Any:
    transform, items = train_transform(preprocessing, "ssd"), []
    for seed, (photograph, own) in enumerate(zip(photographs, boxes, strict=True)):
        pixels, relative, labels = transform(photograph, own, torch.arange(len(own)), seed)
        items.append((pixels, {"boxes": relative, "class_labels": labels}))
    return pack(items)  # type: ignore[arg-type] # what else a target holds is not timed


def photographs(folder: Path | None, size: tuple[int, int], count: int, out: Path) -> list[Path]:
    """JPEGs of a size: of the folder's first photographs, or of noise that was smoothed."""
    generator = np.random.default_rng(0)
    sources = sorted(folder.rglob("*.jpg"))[:count] if folder else [None] * count
    paths = []
    for number, source in enumerate(sources):
        noise = generator.integers(0, 256, (60, 80, 3), dtype=np.uint8)
        image = Image.open(source).convert("RGB") if source else Image.fromarray(noise)
        paths.append(out / f"{size[1]}-{number}.jpg")
        image.resize(size[::-1], Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return paths


def alternated(forms: dict[str, Callable[[], Any]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of this process in every round, of each form in turn; a round before warms up. On a GPU they pass on the wall."""

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()  # other work on the machine does not count

    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(rounds + 1):
        for name, form in forms.items():
            start = now()
            form()
            seconds[name].append(now() - start)
    return {name: values[1:] for name, values in seconds.items()}


def said(seconds: dict[str, list[float]], units: float, unit: str, rate: bool) -> str:
    """A line: each form's median, and the first over each."""
    first = next(iter(seconds.values()))
    parts = []
    for name, values in seconds.items():
        median, ratio = statistics.median(values), statistics.median(a / b for a, b in zip(first, values, strict=True))
        parts.append(f"{name} {units / median if rate else units * median:.1f} {unit} ({ratio:.2f} x)")
    return ", ".join(parts)


def read(options: argparse.Namespace) -> None:
    preprocessing = Preprocessing(size=(options.side, options.side))
    with tempfile.TemporaryDirectory() as folder:
        for size in SIZES:
            paths = photographs(options.photographs, size, options.images, Path(folder))
            corners = torch.rand(len(paths), OBJECTS, 2, generator=torch.Generator().manual_seed(0)).double() * 0.7
            whole = torch.tensor([size[1], size[0]] * 2)
            boxes = [torch.cat([own, own + 0.3], 1) * whole for own in corners]
            forms = {
                "plain": lambda p=paths, b=boxes: plain_batch(p, b, preprocessing),
                "loader": lambda p=paths, b=boxes: packed_batch(map(read_pixels, p), b, preprocessing),
            }
            for place in ("memory", "disk"):
                kept = Decoded(place, paths, np.array([size] * len(paths)))
                forms[place] = lambda k=kept, b=boxes: packed_batch(map(k.__getitem__, range(len(b))), b, preprocessing)
            seconds = alternated(forms, options.rounds, torch.device("cpu"))
            if kept.file.exists():
                kept.file.unlink()
            print(f"{size[1]} x {size[0]} -> {options.side}: {said(seconds, len(paths), 'images/s', rate=True)}")
    floats, bytes_ = (options.side**2 * per for per in (3 * 4 + 8, 3))
    print(f"an image travels as {floats / 1e6:.2f} MB in plain form, {bytes_ / 1e6:.2f} MB in the loader's")


def step(options: argparse.Namespace) -> None:
    device = torch.device(options.device)
    torch.manual_seed(0)
    classes = ClassMap(tuple(f"class {i}" for i in range(80)), tuple(range(80)))
    side = options.step_side
    detector = create("rt_detr_v2", classes, (side, side), backbone="resnet18").to(device).train()
    pixels = torch.randn(options.batch, 3, side, side, device=device)
    labels = [
        {
            "class_labels": torch.randint(80, (OBJECTS,), device=device),
            "boxes": torch.rand(OBJECTS, 4, device=device) * 0.3 + 0.2,
        }
        for _ in range(options.batch)
    ]
    average = MovingAverage(detector, 0.999)
    optimizers = {
        fused: torch.optim.AdamW(detector.parameters(), 1e-6, fused=fused) for fused in {False, device.type == "cuda"}
    }

    def one(at_once: bool, layout: torch.memory_format, fused: bool) -> None:
        detector.to(memory_format=layout)
        torch.manual_seed(1)
        with (
            matching_at_once() if at_once else nullcontext(),
            torch.autocast(device.type, torch.bfloat16, device.type == "cuda"),
        ):
            loss = detector(pixels.contiguous(memory_format=layout), labels=labels).loss
        optimizers[fused].zero_grad()
        loss.backward()
        optimizers[fused].step()
        if at_once:
            average.update()
        else:
            by_tensor(average)

    planes = torch.contiguous_format
    forms = {"plain": lambda: one(False, planes, False), "at once": lambda: one(True, planes, False)}
    if device.type == "cuda":
        forms["as trained"] = lambda: one(True, torch.channels_last, True)
    seconds = alternated(forms, options.rounds, device)
    print(f"step, rt_detr_v2 resnet18, {side} px, batch {options.batch}, {device}: {said(seconds, 1e3, 'ms', rate=False)}")


@torch.no_grad()
def by_tensor(average: MovingAverage) -> None:
    tensors = dict(average.module.named_parameters()) | dict(average.module.named_buffers())
    for name, tensor in tensors.items():
        shadow = average.shadow[name]
        shadow.lerp_(tensor, 0.001) if tensor.is_floating_point() else shadow.copy_(tensor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, help="a folder of JPEGs")
    parser.add_argument("--side", type=int, default=640)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--step-side", type=int, default=320)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.rounds} rounds")
    read(options)
    step(options)


if __name__ == "__main__":
    main()
