"""Whether every family can learn: a small detector of each overfits eight photographs to AP50 > 0.9.

    python benchmarks/overfit.py --data ../shared/data/bccd --json overfit.json [--only detr]

One thread, no augmentation, no dropout; all eight photographs in every step, AdamW with a short warm-up and a cosine decay over
the family's steps. Every 25 steps the eight photographs are evaluated, and the training stops when AP50 exceeds 0.9 or the
family's steps are spent. Seconds are the processor's, of training and evaluation together, so that other work on the machine
does not count.

The JSON is written after every family; started again, those that are in it are not trained again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Subset

from leandetr.data.batches import collate
from leandetr.data.coco import CocoDataset, class_map_of, find_split
from leandetr.data.transforms import eval_transform
from leandetr.detectors.backbones import LITE0, LITE0_PACKAGE
from leandetr.detectors.create import create
from leandetr.detectors.detector import Detector
from leandetr.evaluation.coco import CocoMetrics, evaluate_results, predict_dataset
from leandetr.files import read_json, write_json
from leandetr.report.tables import text_table
from leandetr.training.config import Training

PHOTOGRAPHS = 8
GOAL = 0.9
EVALUATE_EVERY = 25
WARMUP = 0.03  # of a family's steps
CLIP = 0.5
PRETRAINED_LR = 0.3  # factor on the learning rate for a backbone with ImageNet weights


@dataclass(frozen=True)
class Setting:
    """A small configuration that learns quickly: what `create` is given, the peak learning rate and the most steps.

    backbone: a timm backbone with ImageNet weights, or None for the family's own with random ones.
    """

    overrides: Mapping[str, Any]
    steps: int = 600
    lr: float = 1e-3
    side: int = 128
    backbone: str | None = LITE0
    inside: Mapping[str, Any] = field(default_factory=dict)  # of the backbone's configuration


def decoder(**others: Any) -> dict[str, Any]:
    return {"decoder_layers": 3, "num_queries": 40, "decoder_ffn_dim": 256} | others


DENSE = decoder(d_model=128, dropout=0.0, encoder_layers=2, encoder_ffn_dim=256)
SPARSE = decoder(d_model=64, dropout=0.0, encoder_layers=2, encoder_ffn_dim=128)
REAL_TIME = decoder(d_model=64, encoder_hidden_dim=64, encoder_ffn_dim=128, num_denoising=40)
FINE = {"out_indices": [2]}  # families of one level take it at stride 8: blood cells are small here
VIT = {"num_hidden_layers": 4, "hidden_size": 96, "num_attention_heads": 3, "out_indices": [2, 4]}

SETTINGS: dict[str, Setting] = {
    "detr": Setting(DENSE, inside={"out_indices": [3]}, lr=1e-3, steps=1800),
    "conditional_detr": Setting(DENSE, inside={"out_indices": [3]}, lr=1e-3, steps=900),
    "deformable_detr": Setting(SPARSE, steps=1200),
    "deformable_detr_refine": Setting(SPARSE),
    "deformable_detr_two_stage": Setting(SPARSE),
    "dab_detr": Setting(
        decoder(hidden_size=128, dropout=0.0, encoder_layers=2, encoder_ffn_dim=256),
        inside={"out_indices": [3]},
        lr=1e-3,
        steps=1500,
    ),
    "rt_detr": Setting(REAL_TIME),
    "rt_detr_v2": Setting(REAL_TIME),
    "d_fine": Setting(REAL_TIME),
    "deimv2": Setting(REAL_TIME),
    "lw_detr": Setting(decoder(d_model=64, group_detr=5), backbone=None, inside=VIT | {"window_block_indices": [0, 2]}),
    "rf_detr": Setting(
        decoder(d_model=64, dropout=0.0, group_detr=5),
        backbone=None,
        inside=VIT | {"patch_size": 16, "num_windows": 2},
        steps=1500,
    ),
    "swin_detr": Setting(
        DENSE | {"stages": [2, 3]},
        backbone=None,
        lr=6e-4,
        steps=1000,
        inside={"embed_dim": 32, "depths": [1, 1, 2], "num_heads": [2, 4, 8], "window_size": 4, "drop_path_rate": 0.0},
    ),
    "smca_detr": Setting(DENSE, inside=FINE, lr=5e-4),
    "adamixer": Setting(decoder(d_model=64, sampling_points=16, mixing_points=32)),
}


def overfit(name: str, data: Path) -> dict[str, Any]:
    """Train one family; its row of the table."""
    setting = SETTINGS[name]
    torch.manual_seed(0)
    split, size = find_split(data, "train"), (setting.side, setting.side)
    weights = LITE0_PACKAGE if setting.backbone == LITE0 else None
    inside = {f"backbone_config.{key}": value for key, value in setting.inside.items()}
    detector = create(name, class_map_of(split), size, setting.backbone, weights, {**setting.overrides, **inside})
    dataset = CocoDataset(split, eval_transform(detector.preprocessing))
    batch = collate([dataset[index] for index in range(PHOTOGRAPHS)])
    backbone = {id(parameter) for parameter in detector.family.backbone(detector.model).parameters()}
    groups = [
        {"params": [p for p in detector.parameters() if (id(p) in backbone) == inner], "lr": setting.lr * factor}
        for inner, factor in ((False, 1.0), (True, PRETRAINED_LR if weights else 1.0))
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=1e-4)
    schedule = Training(schedule="cosine", warmup=WARMUP)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule.factor(step, setting.steps))

    start = time.process_time()
    for step in range(1, setting.steps + 1):
        loss = detector.train()(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), CLIP)
        optimizer.step()
        rate.step()
        if step % EVALUATE_EVERY == 0:
            metrics = accuracy(detector, dataset)
            seconds = time.process_time() - start
            print(f"{name}: step {step}, {seconds:.0f} s, loss {loss.item():.3f}, AP50 {metrics.ap50:.3f}", flush=True)
            if metrics.ap50 > GOAL:
                break
    parameters = sum(parameter.numel() for parameter in detector.parameters())
    row = {"name": name, "image_size": setting.side, "parameters": parameters, "steps": step, "most_steps": setting.steps}
    return row | {"seconds": seconds, "ap": metrics.ap, "ap50": metrics.ap50}


def accuracy(detector: Detector, dataset: CocoDataset) -> CocoMetrics:
    """COCO's numbers on the photographs that are learned."""
    results = predict_dataset(detector.predict, Subset(dataset, range(PHOTOGRAPHS)), dataset.class_map)
    truth, chosen = dataset.ground_truth(), set(dataset.image_ids[:PHOTOGRAPHS].tolist())
    truth["images"] = [image for image in truth["images"] if image["id"] in chosen]
    truth["annotations"] = [entry for entry in truth["annotations"] if entry["image_id"] in chosen]
    return evaluate_results(truth, results)


def table(rows: list[dict[str, Any]]) -> str:
    lines = [[
        row["name"], f"{row['image_size']} px", f"{row['parameters'] / 1e6:.2f} M", f"{row['steps']} of {row['most_steps']}",
        f"{row['seconds']:.0f}", f"{row['ap']:.3f}", f"{row['ap50']:.3f}",
    ] for row in rows]  # fmt: skip
    titles = ["family", "image", "parameters", "steps", "seconds", "AP", "AP50"]
    return text_table(titles, lines, numeric=[False] + [True] * 6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="data folder; its first eight training photographs are used")
    parser.add_argument("--json", type=Path, default=Path("overfit.json"), help="results, read again when started again")
    parser.add_argument("--only", choices=SETTINGS, help="one family")
    options = parser.parse_args()

    torch.set_num_threads(1)
    rows = {row["name"]: row for row in read_json(options.json)} if options.json.exists() else {}
    for name in [options.only] if options.only else SETTINGS:
        if name not in rows:
            rows[name] = overfit(name, options.data)
            write_json(options.json, list(rows.values()))
    print(table(list(rows.values())))


if __name__ == "__main__":
    main()
