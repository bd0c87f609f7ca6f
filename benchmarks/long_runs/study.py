"""A table of 200 rows with invented numbers: what every result of a study has written, and its page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

SCHEMES = ("static", "dynamic", "weight-only")
SEEDS = [0, 1, 2]
EPOCHS = 10


def write(out: Path, variants: int) -> None:
    """Write `results.json`, `report.md` and `report.html` of variants with three quantizations each, on two engines."""
    from leandetr.files import write_json
    from leandetr.recipe import Recipe
    from leandetr.recipe.rows import planned_rows
    from leandetr.report import write_report
    from leandetr.runs.table import ResultTable

    engines = ["pytorch", "onnxruntime"]
    table = ResultTable(planned_rows(Recipe(**_recipe(variants))), engines)
    rng = np.random.default_rng(0)
    for name, engine in table.pairs:
        curve = name.count("-") == 1  # of trainings alone
        for seed in table.plans[name].seeds:
            table.found[name, engine][seed] = _found(rng, curve)
    table.measurements = [_measured(rng) for _ in table.pairs]
    steps = [{"name": f"step-{n}", "seconds": 3.0, "summary": "AP 0.3"} for n in range(8 * len(table.plans))]
    known = {"environment": {"threads": 1}, "recipe": "data: {folder: coco}\n", "steps": steps, "seeds": SEEDS}
    results = known | {"epochs": [2, 5], "left": "", "command": "leandetr compress", "rows": table.rows()}
    write_json(out / "results.json", results)
    write_report(results, out)


def _recipe(variants: int) -> dict[str, Any]:
    quantization = [{"scheme": scheme} for scheme in SCHEMES]
    named: list[dict[str, Any]] = [{"name": f"variant-{n:02}", "quantization": quantization} for n in range(variants)]
    for variant in named[1:]:
        variant["distillation"] = {"method": "logits"}
    return {
        "data": {"folder": "coco"},
        "teacher": {"checkpoint": "teacher"},
        "student": {"model": "rt_detr_v2", "training": {"epochs": EPOCHS}},
        "seeds": SEEDS,
        "variants": named,
    }


def _found(rng: np.random.Generator, curve: bool) -> dict[str, Any]:
    ap = float(rng.uniform(0.2, 0.4))
    metrics = dict.fromkeys(("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"), ap)
    costs = {"evaluate_seconds": 3.0, "size_bytes": 10**7, "parameters": 10**6}
    draws = (ap + rng.normal(0, 0.01, 200)).tolist()
    points = {epoch: ap * epoch / EPOCHS for epoch in range(1, EPOCHS + 1)} if curve else {}
    return {**metrics, **costs, "draws": draws, "curve": points}


def _measured(rng: np.random.Generator) -> dict[str, float]:
    latency = float(rng.uniform(5, 50))
    return {"latency_ms": latency, "latency_p90_ms": 1.2 * latency, "speedup": 1.0, "speedup_low": 0.9, "speedup_high": 1.1}
