"""Whether every family answers on every engine as in PyTorch: small untrained detectors, exported and run on photographs.

    python benchmarks/engine_parity.py [--photographs FOLDER] [--images 4] [--families NAME ...] [--engines NAME ...]

A line a family and engine. The queries of both answers are matched one to one by least largest difference, since the order in
which encoders choose queries of nearly equal scores is arbitrary; then: the largest differences of a class probability and of a
coordinate (relative to the image), and the share of the queries that agree to 0.001 in all of them. Or why there is no file.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from torch import Tensor

from leandetr.data.batches import normalised
from leandetr.data.images import read_pixels
from leandetr.data.transforms import eval_transform
from leandetr.deployment.mobile_export import FORMATS, export_mobile
from leandetr.deployment.onnx import export_onnx
from leandetr.deployment.pytorch import PyTorchRuntime
from leandetr.deployment.runtimes import open_runtime
from leandetr.detectors.create import create
from leandetr.detectors.detector import Detector
from leandetr.detectors.names import MODELS
from leandetr.errors import UserError
from leandetr.heads import Head
from leandetr.structures import ClassMap

ENGINES = {"onnxruntime": ".onnx", "openvino": ".onnx", "executorch": ".pte", "litert": ".tflite"}
TOLERANCE = 1e-3
SIDE = 128
NOISE = 0.05  # added to the weights: as they start, all queries look alike
DECODER = {"decoder_layers": 2, "num_queries": 12, "decoder_ffn_dim": 64}
ENCODER = DECODER | {"d_model": 64, "encoder_layers": 1}
GROUPS = DECODER | {"d_model": 64, "group_detr": 3}


def _own(**values: Any) -> dict[str, Any]:
    return {f"backbone_config.{key}": value for key, value in values.items()}


VIT = _own(num_hidden_layers=4, num_attention_heads=2, out_indices=[2, 4])
#: families that take other keys, or no backbone but their own
OTHERS: dict[str, tuple[str | None, dict[str, Any]]] = {
    "adamixer": ("test_resnet", DECODER | {"d_model": 64}),
    "dab_detr": ("test_resnet", DECODER | {"hidden_size": 64, "encoder_layers": 1}),
    "swin_detr": (None, ENCODER | _own(embed_dim=24, depths=[1, 1, 1, 1])),
    "lw_detr": (None, GROUPS | VIT | _own(hidden_size=36, window_block_indices=[0, 2])),
    "rf_detr": (None, GROUPS | VIT | _own(hidden_size=32, patch_size=16, num_windows=2)),
}


def small(name: str) -> Detector:
    torch.manual_seed(0)
    backbone, overrides = OTHERS.get(name, ("test_resnet", ENCODER))
    classes = ClassMap(("disc", "square", "star", "ring", "cross"), (1, 2, 3, 4, 5))
    detector = create(name, classes, (SIDE, SIDE), backbone=backbone, overrides=overrides).eval()
    with torch.no_grad():
        for parameter in detector.parameters():
            parameter.add_(torch.randn_like(parameter) * NOISE)
    return detector


def pixels_of(detector: Detector, folder: Path | None, count: int) -> Tensor:
    """(count, 3, SIDE, SIDE): the folder's first photographs as the detector takes them, or of noise."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (count, 3, 90, 120), dtype=torch.uint8, generator=generator)
    images = [read_pixels(file) for file in sorted(folder.rglob("*.jpg"))[:count]] if folder else list(noise)
    transform, none = eval_transform(detector.preprocessing), (torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), 0)
    pixels = torch.stack([transform(image, *none)[0] for image in images])
    return normalised(pixels, detector.preprocessing)


def differences(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor], head: Head) -> tuple[float, float, float]:
    """Of two answers (logits (B, N, C), boxes (B, N, 4)): the largest difference of a class probability and of a coordinate
    between matched queries, and the share of these that agree."""
    scores, boxes, agree = [], [], []
    for mine, other, mine_at, other_at in zip(
        *(head.distribution(each[0]) for each in (ours, theirs)), ours[1], theirs[1], strict=True
    ):
        apart = np.maximum(cdist(mine, other, "chebyshev"), cdist(mine_at, other_at, "chebyshev"))
        rows, columns = linear_sum_assignment(apart)
        scores.append(float((mine[rows] - other[columns]).abs().max()))
        boxes.append(float((mine_at[rows] - other_at[columns]).abs().max()))
        agree.append(float((apart[rows, columns] <= TOLERANCE).mean()))
    return max(scores), max(boxes), min(agree)


def compared(name: str, engines: list[str], options: argparse.Namespace, folder: Path) -> None:
    """Print a family's lines."""
    detector = small(name)
    pixels = pixels_of(detector, options.photographs, options.images)
    expected = PyTorchRuntime(detector).run(pixels, None)
    for engine in engines:
        file, start = folder / f"{name}{ENGINES[engine]}", time.perf_counter()
        try:
            exported(detector, file, engine)
            seconds = time.perf_counter() - start
            score, box, share = differences(expected, open_runtime(file, engine=engine).run(pixels, None), detector.head)
            found = f"{score:8.1e} {box:8.1e} {share:6.0%} {file.stat().st_size / 1e6:6.2f} MB {seconds:6.0f} s"
        except UserError as error:
            found = str(error).removeprefix(f"{file}: ")
        print(f"{name:26s} {engine:12s} {found}", flush=True)


def exported(detector: Detector, file: Path, engine: str) -> None:
    """Write the engine's file; ONNX Runtime and OpenVINO share one."""
    if engine in FORMATS:
        export_mobile(detector, file, engine)
    elif not file.exists():
        export_onnx(detector, file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, help="a folder with JPEGs; noise without")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--families", nargs="+", choices=MODELS, default=list(MODELS), metavar="NAME")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES), metavar="NAME")
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # export's own comparison is of random pixels
    print(f"{'family':26s} {'engine':12s} {'scores':8s} {'boxes':8s} {'agree':6s} {'size':9s} {'export':8s}")
    with tempfile.TemporaryDirectory() as folder:
        for name in options.families:
            compared(name, options.engines, options, Path(folder))


if __name__ == "__main__":
    main()
