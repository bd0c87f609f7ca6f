"""Evaluate a file in COCO's results format, written by any program: COCO's twelve numbers, and Pascal VOC's AP50.

RESULTS is a list of {"image_id", "category_id", "bbox": [x, y, width, height], "score"}.

    python examples/evaluate_results.py DATA RESULTS.json
"""

import sys

from leandetr.evaluation import evaluate_results, voc_metrics
from leandetr.verbs import detections_of


def main(data: str, results: str) -> dict[str, float]:
    truth, found = detections_of(results, data, split="val")
    metrics, voc = evaluate_results(truth, found), voc_metrics(truth, found)
    for name, value in metrics.as_dict().items():
        print(f"{name:12} {value:.3f}")
    for name, value in metrics.per_class.items():
        print(f"AP of {name}: {value:.3f}")
    print(f"VOC AP50     {voc['ap50']:.3f}")
    return metrics.as_dict()


if __name__ == "__main__":
    main(*sys.argv[1:])
