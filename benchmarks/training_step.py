"""Where the time of a training step goes, for a student alone and with Hungarian-matching logits distillation.

    python benchmarks/training_step.py [--model detr] [--image-size 256] [--batch 8] [--queries 300] [--layers 6]

Prints the median milliseconds of each part over the repeats. "matching" holds the cost matrices, the copy to the host and the
assignment, of transformers' own loss and of the distillation term; "loss" is what is left of the two. The detectors are
untrained, which is the worst case for matching: boxes that are nearly all alike are assigned about ten times slower than
those of a trained teacher and a student that follows it.
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
from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher
from transformers.loss.loss_for_object_detection import HungarianMatcher
from transformers.loss.loss_rt_detr import RTDetrHungarianMatcher

from leandetr.detectors.create import MODELS, create
from leandetr.distillation import Distiller, build_terms
from leandetr.distillation.logits import HungarianLogits
from leandetr.structures import Batch, ClassMap

PARTS = ("student forward", "teacher forward", "matching", "loss", "backward")


class Stopwatch:
    """Times parts that may lie inside one another; what an inner part takes is not counted for the outer one."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self.inside: list[float] = []  # for every part that is open: the time of the parts inside it so far

    def timed(self, part: str, function: Callable) -> Callable:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = self.now()
            self.inside.append(0.0)
            result = function(*args, **kwargs)
            whole = self.now() - start
            self.seconds[part] += whole - self.inside.pop()
            if self.inside:
                self.inside[-1] += whole
            return result

        return run

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def median_step(watch: Stopwatch, module: nn.Module, batch: Batch, repeats: int) -> dict[str, float]:
    """Median seconds of each part over the repeats, after one step of warm-up."""
    steps = []
    for _ in range(repeats + 1):
        watch.seconds.clear()
        module.zero_grad()
        loss = module(**batch).loss
        watch.timed("backward", loss.backward)()
        steps.append(dict(watch.seconds))
    return {part: statistics.median(step.get(part, 0.0) for step in steps[1:]) for part in PARTS}


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="detr", choices=MODELS)
    parser.add_argument("--student-backbone", default="resnet18")
    parser.add_argument("--teacher-backbone", default="resnet50")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()

    torch.manual_seed(0)
    device, size = torch.device(options.device), (options.image_size, options.image_size)
    classes = ClassMap(tuple(f"class {i}" for i in range(options.classes)), tuple(range(options.classes)))
    shape = {"num_queries": options.queries, "decoder_layers": options.layers}
    student = create(options.model, classes, size, backbone=options.student_backbone, overrides=shape).to(device).train()
    teacher = create(options.model, classes, size, backbone=options.teacher_backbone, overrides=shape).to(device)
    distiller = Distiller(student, teacher, build_terms(["logits"], student, teacher)).to(device).train()
    distiller.steps = 10**9  # past the first steps, which measure gradients as well

    watch = Stopwatch(device)
    student.forward = watch.timed("student forward", student.forward)
    student.model.loss_function = watch.timed("loss", student.model.loss_function)
    teacher.forward = watch.timed("teacher forward", teacher.forward)
    distiller.terms["logits"].forward = watch.timed("loss", distiller.terms["logits"].forward)
    for kind in {HungarianMatcher, DeformableDetrHungarianMatcher, RTDetrHungarianMatcher}:
        kind.forward = watch.timed("matching", kind.forward)
    HungarianLogits.match = watch.timed("matching", HungarianLogits.match)

    batch = random_batch(options.batch, options.image_size, options.classes, device)
    rows = {
        "student only": median_step(watch, student, batch, options.repeats),
        "distillation": median_step(watch, distiller, batch, options.repeats),
    }
    print(
        f"{options.model}, {options.student_backbone} <- {options.teacher_backbone}, {options.image_size} px, "
        f"batch {options.batch}, {options.queries} queries, {options.layers} layers, "
        f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    print(f"{'ms':14}" + "".join(f"{part:>17}" for part in PARTS) + f"{'step':>10}")
    for name, parts in rows.items():
        print(f"{name:14}" + "".join(f"{1e3 * parts[part]:17.1f}" for part in PARTS) + f"{1e3 * sum(parts.values()):10.1f}")
    least = sum(rows["student only"].values()) + rows["distillation"]["teacher forward"]
    print(f"distillation / (student only + teacher forward): {sum(rows['distillation'].values()) / least:.2f}")


if __name__ == "__main__":
    main()
