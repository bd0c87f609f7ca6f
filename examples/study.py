"""Compare distillation methods over seeds, from Python: a recipe is a dictionary that is checked before anything is trained.

Every finished training stays; called again, the study goes on where it was. The table is in `report.md` and `report.html`.

    python examples/study.py DATA TEACHER runs/methods
"""

import sys
from pathlib import Path
from typing import Any

import leandetr
from leandetr.recipe import parse_recipe


def main(data: str, teacher: str, out: str, training: dict[str, Any] | None = None, seeds: int = 3) -> dict[str, Any]:
    recipe = {
        "data": {"folder": data},
        "image_size": [96, 96],
        "seeds": list(range(seeds)),
        "teacher": {"checkpoint": teacher},
        "student": {
            "model": "rt_detr_v2",
            "backbone": "resnet18",
            "set": {"d_model": 64, "decoder_layers": 2},
            "training": training or {"epochs": 30},
        },
        "variants": [{"name": "alone"}, *({"name": name, "distillation": {"method": name}} for name in ("logits", "fitnet"))],
    }
    results = leandetr.compress(parse_recipe(recipe, "the study"), Path(out), budget_minutes=60)
    for row in results["rows"]:
        print(row["name"], row["ap"])
    print(results["left"] or "Everything is done.")
    return results


if __name__ == "__main__":
    main(*sys.argv[1:])
