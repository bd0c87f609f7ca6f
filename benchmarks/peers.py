"""Our quantization beside what a user would pick instead: one float model, everyone's int8, the same photographs.

    python benchmarks/peers.py runs/bccd/distilled --data DATA --out OUT          accuracy, latency, bytes of a trained detector
    python benchmarks/peers.py rt-detr-v2-r18 --data DATA --out OUT               latency and bytes with random weights

The peers are ONNX Runtime's `quantize_dynamic` and `quantize_static`, ModelOpt's ONNX quantization, NNCF's `quantize` (its
default, `model_type=TRANSFORMER`, and with accuracy control: at most 0.003 AP on training photographs that did not calibrate)
and torchao. ONNX Runtime's, ModelOpt's and ours are files that both engines run, NNCF's run on OpenVINO, torchao's in PyTorch.
On ExecuTorch and LiteRT ours (`Static(target="xnnpack")`) stand beside the integers of the engine's own quantizer
(`XNNPACKQuantizer`, `ai_edge_quantizer`). All are measured in turn in one run (see `leandetr.deployment.benchmark`); every
ratio is against the float model on the same engine, or against eager float PyTorch with `--against eager`. What cannot be made
or run is named with its reason. Writes OUT/peers.json, OUT/peers.md and the files.

Needs the peers: pip install 'leandetr[peers]', and nvidia-modelopt[onnx] without the onnxruntime-gpu that it brings. Models by
name have random weights, so their accuracy is not measured:

    detr-r50         DETR-R50 at 480 x 640          swin-detr-b      DETR on the last stage of Swin-B at 224 x 224
    rt-detr-v2-r18   RT-DETRv2-R18 at 640 x 640
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch

from leandetr.data.coco import CocoDataset, class_map_of, find_split
from leandetr.data.transforms import eval_transform
from leandetr.deployment.benchmark import environment, measure
from leandetr.deployment.metadata import scheme_of
from leandetr.detectors.checkpoints.load import load
from leandetr.detectors.create import create
from leandetr.detectors.detector import Detector
from leandetr.errors import UserError
from leandetr.evaluation import coco
from leandetr.files import write_json, write_text
from leandetr.report.columns import SLOWER
from leandetr.report.rows import surely_slower
from peer_files import FLOAT, MOBILE, OURS, PEERS, Builder

PUBLISHED: dict[str, dict[str, Any]] = {
    "detr-r50": {"name": "detr", "image_size": (480, 640)},
    "swin-detr-b": {"name": "swin_detr", "image_size": (224, 224), "backbone": "swin_base", "overrides": {"stages": [4]}},
    "rt-detr-v2-r18": {
        "name": "rt_detr_v2",
        "image_size": (640, 640),
        # the published configuration of PekingU/rtdetr_v2_r18vd
        "overrides": {
            "backbone_config.depths": [2, 2, 2, 2],
            "backbone_config.layer_type": "basic",
            "backbone_config.hidden_sizes": [64, 128, 256, 512],
            "decoder_layers": 3,
            "hidden_expansion": 0.5,
        },
    },
}

EAGER = "pytorch"


def compare(
    detector: Detector,
    data: Path,
    out: Path,
    candidates: list[str],
    calibration: int,
    repeats: int,
    threads: int,
    against: str,
    trained: bool,
) -> dict[str, Any]:
    """Make everything, evaluate it where the detector is trained, measure it, and return what `peers.json` holds."""
    train, val = (find_split(data, split) for split in ("train", "val"))
    transform = eval_transform(detector.preprocessing)
    builder = Builder(detector, out, CocoDataset(train, transform, detector.class_map), calibration, threads)
    runtimes, failures = [], {}
    mobile = {f"{name.split('-')[0]}-{FLOAT}": None for name in candidates if name in MOBILE}
    for candidate in [FLOAT, *mobile, *candidates]:
        try:
            made = builder.build(candidate)
            for runtime in made:  # an engine may refuse a peer's file, and torch.compile fails when first called
                runtime.run(torch.from_numpy(next(builder.pixels())), None)
            runtimes += made
        except Exception as error:  # whatever a peer raises is a result too
            failures[candidate] = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
    if FLOAT in failures:
        raise UserError(f"an engine cannot run the float model ({failures[FLOAT]}); name another detector")
    floats = {runtime.name: index for index, runtime in enumerate(runtimes) if runtime.artifact == FLOAT}
    runtimes = [runtime for runtime in runtimes if runtime.name in floats]  # of an engine that refused the float model: none
    references = [floats[runtime.name if against == "engine" else EAGER] for runtime in runtimes]
    # for random weights no photograph needs a label: the classes of the data set are the detector's
    rows = [dict(row) for row in measure(runtimes, val, repeats, references)]
    float_bytes = {row["runtime"]: row["size_bytes"] for row in rows if row["artifact"] == FLOAT}
    dataset = CocoDataset(val, transform, detector.class_map)
    for row, runtime in zip(rows, runtimes, strict=True):
        row["size_ratio"] = row["size_bytes"] / float_bytes[row["runtime"]]
        row["ap"] = coco.evaluate(runtime, dataset)[0].ap if trained else None
        row["seconds"] = builder.seconds.get(row["artifact"], builder.seconds.get(f"{row['runtime']}-{row['artifact']}"))
    return {"rows": rows, "failures": failures, "against": against, "repeats": repeats, "environment": environment()}


def markdown(results: dict[str, Any]) -> str:
    """The rows as a table, engine by engine."""
    lines = [
        "| engine | model | AP | ms | p90 ms | against float | MB | bytes | s to make |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in sorted(results["rows"], key=lambda row: row["runtime"], reverse=True):
        ap = "–" if row["ap"] is None else f"{row['ap']:.3f}"
        speed = f"{row['speedup']:.2f}× ({row['speedup_low']:.2f}–{row['speedup_high']:.2f})"
        speed += f", {SLOWER}" if surely_slower(row) else ""
        times = f"{row['latency_ms']:.1f} | {row['latency_p90_ms']:.1f}"
        size = f"{row['size_bytes'] / 1e6:.2f} | {row['size_ratio']:.2f}×"
        lines.append(f"| {row['runtime']} | {row['artifact']} | {ap} | {times} | {speed} | {size} | {row['seconds']:.0f} |")
    lines += [f"\n{candidate} failed: {reason}" for candidate, reason in results["failures"].items()]
    where = results["environment"]
    reference = "the float file on the same engine" if results["against"] == "engine" else "eager float PyTorch"
    lines.append(
        f"\n{results['repeats']} interleaved repeats of one photograph; against {reference}, 95 % interval in brackets. "
        f"{where['processor']}, {where['threads']} threads, torch {where['torch']}, onnxruntime {where['onnxruntime']}, "
        f"openvino {where['openvino']}."
    )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help=f"a saved float detector of a fixed size, or one of {', '.join(PUBLISHED)}")
    parser.add_argument("--data", type=Path, required=True, help="a data folder: calibration on train, the rest on val")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--calibration", type=int, default=64, help="photographs")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--against", choices=("engine", "eager"), default="engine")
    parser.add_argument("--candidates", nargs="*", default=[*OURS, *PEERS, *MOBILE], choices=[*OURS, *PEERS, *MOBILE])
    arguments = parser.parse_args()
    if min(arguments.calibration, arguments.repeats, arguments.threads) < 1:
        parser.error("--calibration, --repeats and --threads: give 1 or more")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    try:
        if arguments.model in PUBLISHED:
            classes = class_map_of(find_split(arguments.data, "train"))
            detector = create(class_map=classes, **PUBLISHED[arguments.model]).eval()
        else:
            detector = load(arguments.model)
            if scheme_of(detector) is not None:
                raise UserError(f"{arguments.model} is quantized already; name the float detector it was made from")
        if detector.preprocessing.size is None:
            raise UserError(f"{arguments.model} keeps the aspect ratio of photographs; name a detector of a fixed size")
        if arguments.out.is_file():
            raise UserError(f"{arguments.out} is a file; name a folder")
        arguments.out.mkdir(parents=True, exist_ok=True)
        results = compare(
            detector,
            arguments.data,
            arguments.out,
            arguments.candidates,
            arguments.calibration,
            arguments.repeats,
            arguments.threads,
            arguments.against,
            trained=arguments.model not in PUBLISHED,
        )
    except UserError as error:
        parser.exit(2, f"peers.py: {error}\n")
    results["model"] = arguments.model
    write_json(arguments.out / "peers.json", results)
    write_text(arguments.out / "peers.md", markdown(results))
    print(markdown(results))


if __name__ == "__main__":
    main()
