"""Quantize a detector with some of your images, export it, and see what it weighs and what it lost.

python examples/quantize_and_export.py DATA DETECTOR runs/small
"""

import sys
from pathlib import Path

import leandetr
from leandetr import Static, WeightOnly


def main(data: str, detector: str, out: str) -> dict[str, Path]:
    out = Path(out)
    # integer arithmetic on calibrated grids; the decoder, which is small, computes in float with 4-bit weights
    scheme = Static(overrides={"model.decoder.*": WeightOnly(bits=4)})
    leandetr.quantize(detector, data, scheme, out / "int8")
    models = {"float": detector, "int8": out / "int8"}
    files = {name: leandetr.export(model, out / f"{name}.onnx") for name, model in models.items()}
    for name, file in files.items():
        print(f"{name:6} AP {leandetr.evaluate(file, data).ap:.3f}, {file.stat().st_size / 1e6:.2f} MB")
    return files


if __name__ == "__main__":
    main(*sys.argv[1:])
