"""Use a saved detector, quantized or not, in transformers' own classes: its folder is a plain `save_pretrained` folder.

Importing `leandetr.transformers` registers its quantized layers and its own families.

    python examples/auto_model.py runs/student-static photo.jpg
"""

import sys

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForObjectDetection

import leandetr.transformers  # noqa: F401 - registers


def main(detector: str, photograph: str, threshold: float = 0.3) -> list[str]:
    processor = AutoImageProcessor.from_pretrained(detector)
    model = AutoModelForObjectDetection.from_pretrained(detector, dtype=torch.float32).eval()
    image = Image.open(photograph).convert("RGB")
    with torch.no_grad():
        output = model(**processor(images=image, return_tensors="pt"))
    (found,) = processor.post_process_object_detection(output, threshold, target_sizes=[(image.height, image.width)])
    names = [model.config.id2label[label] for label in found["labels"].tolist()]
    for name, score, box in zip(names, found["scores"].tolist(), found["boxes"].tolist(), strict=True):
        print(f"{name:12} {score:.2f}  {' '.join(f'{side:.0f}' for side in box)}")
    return names


if __name__ == "__main__":
    main(*sys.argv[1:])
