"""What a step of low-bit training costs against a step of float training of the same detector.

    python benchmarks/qat_step.py [--model runs/distilled] [--bits 4-4-8] [--batch 8] [--repeats 15]

Forward, loss, backward and AdamW on random images; the two detectors take turns, and the ratio is the median over the turns.
Without --model an untrained `rt_detr_v2` with a ResNet-18 is measured. Also prints the bytes of the finished checkpoint against
those of the float one, and the share of what stayed float.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from leandetr.detectors.checkpoints.load import load
from leandetr.detectors.create import create
from leandetr.detectors.detector import Detector
from leandetr.quantization import LowBit, finish, quantize
from leandetr.structures import Batch, ClassMap


def random_batch(images: int, size: tuple[int, int], classes: int) -> Batch:
    """Noise with ten objects an image."""

    def target() -> dict[str, torch.Tensor]:
        return {"class_labels": torch.randint(classes, (10,)), "boxes": torch.rand(10, 4) * 0.3 + 0.2}

    mask = torch.ones(images, *size, dtype=torch.int64)
    return Batch(pixel_values=torch.randn(images, 3, *size), pixel_mask=mask, labels=[target() for _ in range(images)])


def stepper(detector: Detector, batch: Batch) -> Callable[[], float]:
    """One training step, which returns its seconds."""
    detector.train()
    optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-6)

    def step() -> float:
        start = time.perf_counter()
        detector(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - start

    return step


def written_bytes(detector: Detector) -> int:
    with TemporaryDirectory() as folder:
        detector.save(Path(folder))
        return (Path(folder) / "model.safetensors").stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--bits", default="4-4-8")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()

    torch.manual_seed(0)
    if options.model:
        detector = load(options.model)
    else:
        classes = ClassMap(("one", "two", "three"), (1, 2, 3))
        detector = create("rt_detr_v2", classes, (256, 256), "resnet18", overrides={"decoder_layers": 3})
    size = detector.preprocessing.size or (256, 256)
    batch = random_batch(options.batch, size, len(detector.class_map.names))
    trained = quantize(detector, LowBit(bits=options.bits, calibration_images=options.batch), [batch])

    sizes = [written_bytes(detector), written_bytes(finish(trained))]
    record = trained.config.quantization_config
    inside = sum(trained.model.get_submodule(name).weight.numel() for name in record.layers)
    whole = sum(parameter.numel() for parameter in detector.parameters())

    steps = [stepper(detector, batch), stepper(trained, batch)]
    for step in steps:
        step()
    seconds = [[step() for step in steps] for _ in range(options.repeats)]
    ratio = statistics.median(low / full for full, low in seconds)
    medians = [1e3 * statistics.median(column) for column in zip(*seconds, strict=True)]
    least = [1e3 * min(column) for column in zip(*seconds, strict=True)]
    print(f"{options.model or 'rt_detr_v2, resnet18'}, {size[0]} x {size[1]}, batch {options.batch}, {options.bits}")
    print(f"threads {torch.get_num_threads()}, torch {torch.__version__}, {options.repeats} turns")
    print(f"step: float {medians[0]:.0f} ms, low-bit {medians[1]:.0f} ms")
    print(f"ratio: {ratio:.2f}, of the fastest steps {least[1] / least[0]:.2f}")
    print(
        f"checkpoint: float {sizes[0]} bytes, finished {sizes[1]} bytes, {sizes[1] / sizes[0]:.3f} of it; "
        f"{1 - inside / whole:.1%} of the weights stayed float"
    )


if __name__ == "__main__":
    main()
