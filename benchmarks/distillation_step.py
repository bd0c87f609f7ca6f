"""What distillation costs: a training step with it against a step of the student alone and a forward of the teacher.

    python benchmarks/distillation_step.py [--model detr] [--method detrdistill] [--image-size 256] [--batch 8] [--repeats 7]

Every round runs one step of each; the medians over the rounds are printed, with the distillation step's split: the two
forwards, every term, and the backward pass. The detectors are untrained, which is the worst case for matching: boxes that are
nearly all alike are assigned about ten times slower than those of a trained teacher and a student that follows it. `--spread`
gives every query an answer of its own, as trained detectors have.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from leandetr.detectors.create import create
from leandetr.detectors.detector import Detector
from leandetr.detectors.names import MODELS
from leandetr.distillation import Distiller, build_terms
from leandetr.structures import Batch, ClassMap


class Stopwatch:
    """Times parts of a step that do not lie inside one another."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def timed(self, part: str, function: Callable) -> Callable:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = self.now()
            result = function(*args, **kwargs)
            self.seconds[part].append(self.now() - start)
            return result

        return run

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def medians(self) -> dict[str, float]:
        """Milliseconds of each part; the first round warms up."""
        return {part: 1e3 * statistics.median(values[1:]) for part, values in self.seconds.items()}


def random_batch(images: int, side: int, classes: int, device: torch.device) -> Batch:
    """Noise with seven objects an image, about as many as COCO has."""

    def target() -> dict[str, torch.Tensor]:
        boxes = torch.rand(7, 4, device=device) * 0.3 + 0.2
        return {"class_labels": torch.randint(classes, (7,), device=device), "boxes": boxes}

    return Batch(
        pixel_values=torch.randn(images, 3, side, side, device=device),
        pixel_mask=torch.ones(images, side, side, dtype=torch.int64, device=device),
        labels=[target() for _ in range(images)],
    )


@torch.no_grad()
def spread(detector: Detector) -> None:
    """Weights that give every query an answer of its own."""
    for name, parameter in detector.named_parameters():
        if "backbone" not in name and parameter.ndim > 1:
            parameter.add_(torch.randn_like(parameter) * parameter.std().nan_to_num(0.1).clamp(0.05, 0.2))


def measure(student: nn.Module, distiller: Distiller, batch: Batch, repeats: int) -> tuple[dict[str, float], dict[str, float]]:
    """Medians in milliseconds: of the student's step, the teacher's forward and the distillation step; and of its parts."""
    device = batch["pixel_values"].device
    watch, split = Stopwatch(device), Stopwatch(device)

    def step(module: nn.Module, backward: Callable) -> None:
        module.zero_grad()
        backward(module(**batch).loss)

    alone = watch.timed("student step", step)
    whole = watch.timed("distillation step", step)
    forward = watch.timed("teacher forward", distiller.teacher)
    backward = split.timed("backward", torch.Tensor.backward)
    own, answer = student.forward, distiller.teacher
    for _ in range(repeats + 1):
        alone(student, torch.Tensor.backward)
        forward(batch["pixel_values"], batch["pixel_mask"])
        student.forward, distiller.teacher = split.timed("student forward", own), split.timed("teacher forward", answer)
        for name, term in distiller.terms.items():
            term.forward = split.timed(name, type(term).forward.__get__(term))
        whole(distiller, backward)
        student.forward, distiller.teacher = own, answer
    return watch.medians(), split.medians()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="detr", choices=MODELS)
    parser.add_argument("--method", default="detrdistill", help="names joined by commas")
    parser.add_argument("--student-backbone", default="resnet18")
    parser.add_argument("--teacher-backbone", default="resnet50")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--queries", type=int, help="the family's own number by default")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--spread", action="store_true", help="answers as different as trained detectors' are")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()

    torch.manual_seed(0)
    device, size = torch.device(options.device), (options.image_size, options.image_size)
    classes = ClassMap(tuple(f"class {i}" for i in range(options.classes)), tuple(range(options.classes)))
    shape = {"decoder_layers": options.layers} | ({"num_queries": options.queries} if options.queries else {})
    student = create(options.model, classes, size, backbone=options.student_backbone, overrides=shape).to(device).train()
    teacher = create(options.model, classes, size, backbone=options.teacher_backbone, overrides=shape).to(device)
    if options.spread:
        spread(student)
        spread(teacher)
    distiller = Distiller(student, teacher, build_terms(options.method, student, teacher)).to(device).train()
    distiller.steps = 10**9  # past the first steps, which measure gradients as well

    batch = random_batch(options.batch, options.image_size, options.classes, device)
    found, split = measure(student, distiller, batch, options.repeats)
    print(
        f"{options.model}, {options.method}, {options.student_backbone} <- {options.teacher_backbone}, "
        f"{options.image_size} px, batch {options.batch}, {student.config.num_queries} queries, {options.layers} layers, "
        f"{options.repeats} rounds, {device}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    for name, milliseconds in found.items():
        print(f"{name:24}{milliseconds:10.1f} ms")
    for name, milliseconds in split.items():
        print(f"    {name:20}{milliseconds:10.1f} ms")
    least = found["student step"] + found["teacher forward"]
    print(f"distillation step / (student step + teacher forward): {found['distillation step'] / least:.2f}")


if __name__ == "__main__":
    main()
