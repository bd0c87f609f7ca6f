"""Find objects in a folder of photographs and read the written file back: how many of each class.

python examples/read_predictions.py DETECTOR PHOTOGRAPHS runs/found
"""

import json
import sys
from collections import Counter
from pathlib import Path

import leandetr


def main(detector: str, photographs: str, out: str) -> Counter[str]:
    file = leandetr.predict(detector, [Path(photographs)], Path(out), threshold=0.3)  # the drawn pictures lie beside it
    counts: Counter[str] = Counter()
    for entry in json.loads(file.read_text()):
        for found in entry["detections"]:  # {"class", "score", "box": [x0, y0, x1, y1] in pixels}
            counts[found["class"]] += 1
    for name, count in counts.most_common():
        print(f"{name:12} {count}")
    return counts


if __name__ == "__main__":
    main(*sys.argv[1:])
