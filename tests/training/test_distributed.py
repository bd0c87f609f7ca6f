"""Two processes learn what one process learns from the same global batch, and share the evaluation."""

import json
import os
import subprocess
import sys

import torch
from safetensors.torch import load_file

from leandetr.detectors.spec import NewDetector
from leandetr.training.config import Training
from leandetr.verbs import train

SMALL = {"d_model": 32, "decoder_layers": 2, "encoder_layers": 1, "num_queries": 6, "decoder_ffn_dim": 32, "dropout": 0.0}
SCHEDULE = {"epochs": 2, "lr": 1e-3, "ema": 0, "augment": "none", "precision": "float32", "workers": 0}


def test_two_processes_give_the_weights_of_one(data, tmp_path):
    settings = [f"model.{key}={value}" for key, value in SMALL.items()]
    settings += [f"training.{key}={value}" for key, value in SCHEDULE.items() if key not in ("epochs", "lr")]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "leandetr",
        "train",
    ]
    command += ["--data", data, "--model", "detr", "--backbone", "test_resnet", "--image-size", "64", "64", "--batch-size", "2"]
    command += ["--epochs", "2", "--lr", "1e-3", "--out", tmp_path / "two", *(part for s in settings for part in ("--set", s))]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    run = subprocess.run([str(part) for part in command], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr

    detr = NewDetector(model="detr", backbone="test_resnet", image_size=(64, 64), set=SMALL)
    train(data, detr, tmp_path / "one", Training(batch_size=4, **SCHEDULE))
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    apart = torch.cat([(two[key] - tensor).abs().flatten() for key, tensor in one.items()])
    assert apart.max() < 1e-4
    assert apart.quantile(0.999) < 1e-5

    logs = [
        [json.loads(line) for line in (tmp_path / name / "training" / "log.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    aps, losses = ([[row[key] for row in log if key in row] for log in logs] for key in ("eval_ar_100", "loss"))
    assert len(aps[0]) == len(aps[1]) == 2
    torch.testing.assert_close(torch.tensor(aps[1]), torch.tensor(aps[0]), rtol=0, atol=1e-3)
    torch.testing.assert_close(torch.tensor(losses[1]), torch.tensor(losses[0]), rtol=1e-3, atol=1e-3)
