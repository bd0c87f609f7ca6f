"""What is mutated: a trained detector, its ONNX file, a small data set in every layout, a recipe; all without downloads."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml

from leandetr.data.shapes import write_shapes

ROOT = Path(__file__).resolve().parents[2]
DETECTOR = ROOT / "recipes" / "shapes-teacher"
SPLITS = {"train": 3, "val": 2}
SIDE = 64

#: a whole run of seconds: every kind of step that needs no download
RECIPE: dict[str, Any] = {
    "data": {"folder": "coco"},
    "image_size": [96, 96],
    "teacher": {"checkpoint": "model"},
    "student": {
        "checkpoint": "model",
        "queries": 8,
        "set": {"decoder_layers": 2},
        "training": {"epochs": 2, "batch_size": 2, "workers": 0, "precision": "float32", "evaluate_every": 1},
    },
    "distillation": {"method": "fitnet,logits"},
    "quantization": [{"scheme": "static"}],
    "calibration": 2,
    "benchmark": {"runtimes": ["pytorch", "onnxruntime"], "repeats": 5},
    "gallery": 2,
}


def make(folder: Path, exported: bool = True) -> Path:
    """Write all subjects into a folder that is not there yet, and return it. exported: the ONNX file too, the slowest."""
    from leandetr import verbs

    folder.mkdir(parents=True)
    write_shapes(folder / "coco", *SPLITS.values(), (SIDE, SIDE), 0)
    shutil.copytree(DETECTOR, folder / "model", ignore=shutil.ignore_patterns("README.md"))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    if exported:
        verbs.export(folder / "model", folder / "model.onnx")
    splits = {split: json.loads((folder / f"coco/annotations/instances_{split}.json").read_text()) for split in SPLITS}
    for write in (_roboflow, _voc, _yolo, _csv, _huggingface):
        write(folder, splits)
    truth = splits["val"]["annotations"]
    rows = [{key: entry[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.5} for entry in truth]
    (folder / "results.json").write_text(json.dumps(rows))
    shutil.copy(folder / "coco/val" / splits["val"]["images"][0]["file_name"], folder / "photo.jpg")
    return folder


def _objects(coco: dict[str, Any], image: dict[str, Any]) -> list[tuple[str, list[float]]]:
    names = {entry["id"]: entry["name"] for entry in coco["categories"]}
    return [(names[a["category_id"]], a["bbox"]) for a in coco["annotations"] if a["image_id"] == image["id"]]


def _corners(box: list[float]) -> list[float]:
    return [box[0], box[1], box[0] + box[2], box[1] + box[3]]


def _image(folder: Path, split: str, image: dict[str, Any], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(folder / "coco" / split / image["file_name"], target)


def _roboflow(folder: Path, splits: dict[str, Any]) -> None:
    for split, coco in splits.items():
        place = folder / "roboflow" / ("valid" if split == "val" else split)
        for image in coco["images"]:
            _image(folder, split, image, place / Path(image["file_name"]).name)
        root = {"id": 0, "name": "shapes", "supercategory": "none"}
        above = [entry | {"supercategory": "shapes"} for entry in coco["categories"]]
        (place / "_annotations.coco.json").write_text(json.dumps(coco | {"categories": [root, *above]}))


def _voc(folder: Path, splits: dict[str, Any]) -> None:
    voc = folder / "voc"
    for name in ("Annotations", "ImageSets/Main"):
        (voc / name).mkdir(parents=True)
    for split, coco in splits.items():
        stems = []
        for image in coco["images"]:
            file = Path(image["file_name"])
            stems.append(f"{split}-{file.stem}")
            _image(folder, split, image, voc / "JPEGImages" / f"{stems[-1]}{file.suffix}")
            objects = "".join(
                f"<object><name>{name}</name><difficult>0</difficult><bndbox>"
                + "".join(f"<{side}>{at:g}</{side}>" for side, at in zip(("xmin", "ymin", "xmax", "ymax"), _corners(box)))
                + "</bndbox></object>\n"
                for name, box in _objects(coco, image)
            )
            size = f"<size><width>{SIDE}</width><height>{SIDE}</height><depth>3</depth></size>"
            (voc / "Annotations" / f"{stems[-1]}.xml").write_text(
                f"<annotation>\n<filename>{stems[-1]}{file.suffix}</filename>\n{size}\n{objects}</annotation>\n"
            )
        (voc / "ImageSets/Main" / f"{split}.txt").write_text("\n".join(stems) + "\n")


def _yolo(folder: Path, splits: dict[str, Any]) -> None:
    names = [entry["name"] for entry in splits["train"]["categories"]]
    for split, coco in splits.items():
        for image in coco["images"]:
            file = Path(image["file_name"])
            _image(folder, split, image, folder / "yolo/images" / split / file.name)
            lines = [
                f"{names.index(name)} {(x + w / 2) / SIDE:.6f} {(y + h / 2) / SIDE:.6f} {w / SIDE:.6f} {h / SIDE:.6f}"
                for name, (x, y, w, h) in _objects(coco, image)
            ]
            label = folder / "yolo/labels" / split / f"{file.stem}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text("\n".join(lines) + "\n")
    content = {"path": ".", "train": "images/train", "val": "images/val", "names": dict(enumerate(names))}
    (folder / "yolo/data.yaml").write_text(yaml.safe_dump(content))


def _csv(folder: Path, splits: dict[str, Any]) -> None:
    for split, coco in splits.items():
        place, rows = (
            folder / "csv" / ("valid" if split == "val" else split),
            ["filename,width,height,class,xmin,ymin,xmax,ymax"],
        )
        for image in coco["images"]:
            name = Path(image["file_name"]).name
            _image(folder, split, image, place / name)
            for kind, box in _objects(coco, image):
                rows.append(f"{name},{SIDE},{SIDE},{kind}," + ",".join(f"{round(at)}" for at in _corners(box)))
        (place / "_annotations.csv").write_text("\n".join(rows) + "\n")


def _huggingface(folder: Path, splits: dict[str, Any]) -> None:
    for split, coco in splits.items():
        place, rows = folder / "huggingface" / ("validation" if split == "val" else split), []
        for image in coco["images"]:
            name = Path(image["file_name"]).name
            _image(folder, split, image, place / name)
            objects = _objects(coco, image)
            things = {"bbox": [box for _, box in objects], "category": [kind for kind, _ in objects]}
            rows.append(json.dumps({"file_name": name, "objects": things}))
        (place / "metadata.jsonl").write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
