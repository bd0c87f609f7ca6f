"""Use an exported file with onnxruntime and NumPy alone, where leandetr is not installed.

The file says itself what its classes are and how a photograph becomes its pixel values.

    python examples/serve_onnx.py student.onnx photo.jpg
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image


def main(model: str, photograph: str, threshold: float = 0.3) -> list[tuple[str, float, list[float]]]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["leandetr"])
    preprocessing, names = about["preprocessing"], about["class_map"]["names"]

    image = Image.open(photograph).convert("RGB")
    height, width = preprocessing["size"]
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), np.float32) / 255
    pixels = (pixels - np.float32(preprocessing["mean"])) / np.float32(preprocessing["std"])
    logits, boxes = session.run(None, {"pixel_values": pixels.transpose(2, 0, 1)[None]})  # (1, N, C), (1, N, 4)

    if about["head"] == "softmax":  # the last column is no-object
        shifted = np.exp(logits[0] - logits[0].max(-1, keepdims=True))
        scores = (shifted / shifted.sum(-1, keepdims=True))[:, :-1]
    else:
        scores = 1 / (1 + np.exp(-logits[0]))
    queries, classes = np.nonzero(scores > threshold)
    cx, cy, w, h = (boxes[0][queries] * [image.width, image.height, image.width, image.height]).T
    corners = np.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], -1)
    found = zip(classes, scores[queries, classes], corners, strict=True)
    rows = sorted(((names[label], float(score), box.tolist()) for label, score, box in found), key=lambda row: -row[1])
    for name, score, box in rows:
        print(f"{name:12} {score:.2f}  {' '.join(f'{side:.0f}' for side in box)}")
    return rows


if __name__ == "__main__":
    main(*sys.argv[1:])
