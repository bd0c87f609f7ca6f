"""`compress`: teacher, student without and with it, quantized variants, exports, and one table of what each cost.

Every step leaves a note under `steps/` with a fingerprint of what it was made from. A step whose note still fits is not done
again, so a run that was killed goes on where it was, and a run whose recipe changed redoes what the change concerns.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console

from leandetr import verbs
from leandetr.data.coco import CocoDataset, find_split
from leandetr.data.shapes import write_shapes
from leandetr.data.transforms import eval_transform
from leandetr.deployment.benchmark import environment, measure
from leandetr.deployment.runtimes import open_runtime
from leandetr.detectors.load import load
from leandetr.files import claim_folder, read_json, write_json, write_text
from leandetr.quantization.config import scheme_config
from leandetr.recipe import Model, Quantization, Recipe
from leandetr.report import Picture, write_report
from leandetr.structures import Detections

ROWS_OF_ONE = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


def compress(recipe: Recipe, out: Path, command: str = "leandetr.compress") -> dict[str, Any]:
    """Run a recipe into `out` and return what `results.json` holds.

    The folder then has: `recipe.yaml`; `teacher`, `baseline`, `distilled` and one folder a quantized variant, each a detector that
    `load` takes; `onnx/` with the exported files; `predictions/` in COCO's results format, one file a row; `results.json`,
    `report.md`, `report.html`, `images.html`; `steps/` with what was done when and in how many seconds.

    Raises UserError where the folder is not ours, and for every fault of the data, the models or the recipe.
    """
    out = Path(out)
    claim_folder(out, "compress")
    write_text(out / "recipe.yaml", yaml.safe_dump(recipe.model_dump(mode="json", exclude_defaults=True), sort_keys=False))
    return Run(recipe, out, command).run()


class Run:
    """One run of a recipe in a folder."""

    def __init__(self, recipe: Recipe, out: Path, command: str) -> None:
        self.recipe, self.out, self.command = recipe, out, command
        self.steps: list[dict[str, Any]] = []
        self.console = Console(stderr=True, highlight=False)
        self.variants = [(q.name or f"distilled-{q.scheme}", q) for q in recipe.quantization]
        for _, variant in self.variants:
            scheme_config(variant.scheme, **variant.options)  # a mistake there is said now, not after the training

    def run(self) -> dict[str, Any]:
        data, data_key = self._data()
        teacher_key = self._model("teacher", self.recipe.teacher, data, data_key)
        student = self.recipe.student
        keys = {"teacher": teacher_key, "baseline": self._model("baseline", student, data, data_key)}
        keys["distilled"] = self._distilled(data, teacher_key, data_key)
        for name, variant in self.variants:
            keys[name] = self._quantized(name, variant, data, keys["distilled"])
        graphs = {name: self._exported(name, key) for name, key in keys.items()}
        rows = self._rows(data, keys, graphs)
        results = {
            "environment": environment() | {"seed": self.recipe.seed},
            "command": self.command,
            "recipe": (self.out / "recipe.yaml").read_text(encoding="utf-8"),
            "steps": self.steps,
            "rows": rows,
        }
        write_json(self.out / "results.json", results)
        write_report(results, self.out, self._gallery(data, rows), load(self.out / "teacher").class_map.names)
        return results

    def _step(self, name: str, made_from: Any, work: Callable[[], str]) -> str:
        """Do `work` unless its note says that it was done with the same input; returns the input's fingerprint."""
        key = hashlib.sha256(json.dumps(made_from, sort_keys=True, default=str).encode()).hexdigest()[:16]
        note = self.out / "steps" / f"{name}.json"
        before = read_json(note) if note.exists() else {"made_from": key}
        if before["made_from"] == key and "summary" in before:
            self.steps.append({field: before[field] for field in ("name", "seconds", "summary")})
            return key
        if before["made_from"] != key and (self.out / name).is_dir():
            shutil.rmtree(self.out / name)  # of another recipe; what a kill interrupted is continued instead
        write_json(note, {"name": name, "made_from": key})
        self.console.print(f"[bold]{name}[/bold]")
        start = time.monotonic()
        done = {"name": name, "summary": work(), "seconds": round(time.monotonic() - start, 1)}
        write_json(note, done | {"made_from": key})
        self.steps.append(done)
        return key

    def _data(self) -> tuple[Path, str]:
        data = self.recipe.data
        if data.folder is not None:
            for split in ("train", "val"):
                find_split(data.folder, split)
            return data.folder, str(data.folder.resolve())
        shapes, folder = data.shapes, self.out / "data"

        def work() -> str:
            write_shapes(folder, shapes.train, shapes.val, shapes.size, shapes.seed)
            return f"{shapes.train} training and {shapes.val} validation images of synthetic shapes"

        return folder, self._step("data", shapes.model_dump(), work)

    def _model(self, name: str, model: Model, data: Path, data_key: str) -> str:
        """Train a model, or take a finished one."""
        folder = self.out / name

        def work() -> str:
            if model.checkpoint is not None:
                detector = load(model.checkpoint)
                claim_folder(folder, model.checkpoint)
                detector.save(folder)
                return f"taken from {model.checkpoint}, {_millions(detector)}"
            detector = verbs.train(data, model.model, folder, **self._building(model))
            return f"{model.training.epochs} epochs, {_millions(detector)}"

        return self._step(name, [data_key, model.model_dump(), self._size(model), self.recipe.seed], work)

    def _distilled(self, data: Path, teacher_key: str, data_key: str) -> str:
        student, distillation = self.recipe.student, self.recipe.distillation

        def work() -> str:
            verbs.distill(
                data,
                self.out / "teacher",
                student.model,
                self.out / "distilled",
                method=distillation.method,
                term_weights=distillation.weights,
                term_options=distillation.options,
                **self._building(student),
            )
            return f"{student.training.epochs} epochs with {distillation.method}"

        made_from = [
            data_key,
            teacher_key,
            student.model_dump(),
            distillation.model_dump(),
            self._size(student),
            self.recipe.seed,
        ]
        return self._step("distilled", made_from, work)

    def _building(self, model: Model) -> dict[str, Any]:
        training = model.training.model_copy(update={"seed": self.recipe.seed})
        shared = {"backbone": model.backbone, "weights": model.weights, "overrides": model.set, "training": training}
        return shared | {"image_size": self._size(model)}

    def _size(self, model: Model) -> tuple[int, int]:
        return model.image_size or self.recipe.image_size

    def _quantized(self, name: str, variant: Quantization, data: Path, student_key: str) -> str:
        def work() -> str:
            options, calibration = variant.options, self.recipe.calibration
            detector = verbs.quantize(self.out / "distilled", data, variant.scheme, self.out / name, calibration, options)
            return detector.config.quantization_config.summary().splitlines()[0]

        return self._step(name, [student_key, variant.model_dump(), self.recipe.calibration], work)

    def _exported(self, name: str, key: str) -> Path:
        graph = self.out / "onnx" / f"{name}.onnx"

        def work() -> str:
            verbs.export(self.out / name, graph)
            return f"{graph.stat().st_size / 1e6:.2f} MB, agrees with PyTorch"

        self._step(f"onnx-{name}", key, work)
        return graph

    def _rows(self, data: Path, keys: Mapping[str, str], graphs: Mapping[str, Path]) -> list[dict[str, Any]]:
        """Accuracy of every artefact on every runtime, then the latency of all of them in one interleaved measurement."""
        benchmark, split = self.recipe.benchmark, find_split(data, "val")
        runtimes = [
            (name, open_runtime(self.out / name if engine == "pytorch" else graphs[name], benchmark.threads, engine))
            for engine in benchmark.runtimes
            for name in keys
        ]
        rows = []
        for name, runtime in runtimes:
            label = f"{name}-{runtime.name}"
            file = self.out / "predictions" / f"{label}.json"
            scores = self.out / "predictions" / f"{label}.metrics.json"

            def work(runtime=runtime, file=file, scores=scores) -> str:
                metrics, results = verbs.evaluate_runtime(runtime, split)
                write_json(file, results)
                write_json(scores, metrics.as_dict())
                return f"AP {metrics.ap:.3f}"

            self._step(f"evaluate-{label}", [keys[name], runtime.name], work)
            metrics = read_json(scores)
            rows.append({"name": name} | {field: metrics[field] for field in ROWS_OF_ONE})
        self.console.print("[bold]benchmark[/bold]")
        float_row = {(name, runtime.name): index for index, (name, runtime) in enumerate(runtimes)}
        against = [float_row["distilled" if name in dict(self.variants) else name, runtime.name] for name, runtime in runtimes]
        for row, measured in zip(rows, measure([r for _, r in runtimes], split, benchmark.repeats, against), strict=True):
            row |= measured
        return rows

    def _gallery(self, data: Path, rows: list[dict[str, Any]]) -> list[Picture]:
        """The first validation images with objects, with the boxes that each row's exported model found."""
        if not self.recipe.gallery:
            return []
        detector = load(self.out / "teacher")
        dataset = CocoDataset(find_split(data, "val"), eval_transform(detector.preprocessing), detector.class_map)
        truth = _by_image(dataset.ground_truth()["annotations"], detector.class_map.dataset_ids)
        engine = "onnxruntime" if "onnxruntime" in self.recipe.benchmark.runtimes else self.recipe.benchmark.runtimes[0]
        found = {
            row["name"]: _by_image(
                read_json(self.out / "predictions" / f"{row['name']}-{engine}.json"), detector.class_map.dataset_ids
            )
            for row in rows
            if row["runtime"] == engine
        }
        nothing = Detections(torch.zeros(0), torch.zeros(0, dtype=torch.long), torch.zeros(0, 4))
        chosen = [index for index, image in enumerate(dataset.image_ids.tolist()) if image in truth][: self.recipe.gallery]
        return [
            Picture(
                dataset.path(index).name,
                dataset.load_image(index),
                truth[dataset.image_ids[index].item()],
                {name: boxes.get(dataset.image_ids[index].item(), nothing) for name, boxes in found.items()},
            )
            for index in chosen
        ]


def _by_image(results: list[dict[str, Any]], dataset_ids: tuple[int, ...]) -> dict[int, Detections]:
    """COCO annotations or results -> the detections of every image."""
    grouped: dict[int, list[dict[str, Any]]] = {}
    for entry in results:
        grouped.setdefault(entry["image_id"], []).append(entry)
    answer = {}
    for image, entries in grouped.items():
        corner = torch.tensor([entry["bbox"] for entry in entries], dtype=torch.float32)
        boxes = torch.cat([corner[:, :2], corner[:, :2] + corner[:, 2:]], 1)
        labels = torch.tensor([dataset_ids.index(entry["category_id"]) for entry in entries])
        answer[image] = Detections(torch.tensor([entry.get("score", 1.0) for entry in entries]), labels, boxes)
    return answer


def _millions(detector: torch.nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in detector.parameters()) / 1e6:.2f} M parameters"
