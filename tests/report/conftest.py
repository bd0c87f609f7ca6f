"""A run's results as `results.json` holds them, with invented numbers."""

import pytest

from leandetr.report.rows import Row


@pytest.fixture
def make_row():
    """make_row("distilled", ap=0.3): a row with every field, changed as said."""

    def build(name: str = "teacher", runtime: str = "onnxruntime", **changes) -> Row:
        accuracies = {"ap": 0.4, "ap50": 0.6, "ap75": 0.42, "ap_small": None, "ap_medium": 0.35, "ap_large": 0.5}
        costs = {"latency_ms": 20.0, "latency_p90_ms": 24.0, "speedup": 1.0, "size_bytes": 10_000_000, "parameters": 2_500_000}
        rest = {"seeds": [0], "planned": [0], "evaluate_seconds": 1.0, "spread": {"ap": None}, "curve": [], "runs": []}
        held = {"against": None, "float_row": name, "change": None, "change_spread": None, "change_interval": None}
        return {"name": name, "artifact": f"{name}.onnx", "runtime": runtime, **accuracies, **costs, **rest, **held, **changes}

    return build


@pytest.fixture
def results(make_row):
    rows = []
    for runtime, factor in (("pytorch", 2.0), ("onnxruntime", 1.0)):
        distilled = {"against": "distilled", "float_row": "distilled"}
        rows += [
            make_row("teacher", runtime, ap=0.45, latency_ms=40 * factor, size_bytes=30_000_000),
            make_row("baseline", runtime, ap=0.28, latency_ms=10 * factor, against="teacher", change=-0.17),
            make_row("distilled", runtime, ap=0.31, latency_ms=10 * factor, against="baseline", change=0.03),
            make_row("distilled-weight-only", runtime, ap=0.309, latency_ms=12.5 * factor, speedup=0.8, size_bytes=3_000_000)
            | distilled
            | {"change": -0.001},
            make_row("distilled-static", runtime, ap=0.3, latency_ms=5 * factor, speedup=2.0, size_bytes=2_900_000)
            | distilled
            | {"change": -0.01},
        ]
    return {
        "environment": {"cpu": "a processor", "threads": 2, "versions": {"torch": "2.11"}},
        "rows": rows,
        "command": "leandetr compress recipe.yaml",
        "recipe": "data:\n  shapes: {train: 10}\n",
        "steps": [{"name": "teacher", "seconds": 83.0, "summary": "AP 0.450"}],
    }
