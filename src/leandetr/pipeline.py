"""`compress`: teacher, student without and with it, quantized variants, exports, and one table of what each cost.

Every step leaves a note under `steps/` with a fingerprint of what it was made from. A step whose note still fits, and whose
product is still there, is not done again: a run that was killed goes on where it was, and a run whose recipe changed redoes
what the change concerns. What a recipe gets wrong is said before anything is trained.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from leandetr import verbs
from leandetr.data.coco import Split, class_map_of, find_split
from leandetr.data.shapes import write_shapes
from leandetr.data.transforms import AUGMENTATIONS
from leandetr.deployment.benchmark import environment, measure
from leandetr.deployment.runtimes import ENGINES, Runtime, open_runtime
from leandetr.detectors.create import MODELS, create
from leandetr.detectors.detector import Detector
from leandetr.detectors.load import load
from leandetr.distillation.distiller import Distiller
from leandetr.distillation.methods import build_terms
from leandetr.errors import UserError, unknown
from leandetr.files import claim_folder, read_json, write_json, write_text
from leandetr.quantization.config import scheme_config
from leandetr.recipe import Model, Quantization, Recipe
from leandetr.report import Picture, write_report
from leandetr.report.validation import validation_pictures

ROWS_OF_ONE = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


def compress(recipe: Recipe, out: Path, command: str = "leandetr.compress") -> dict[str, Any]:
    """Run a recipe into `out` and return what `results.json` holds.

    The folder then has: `recipe.yaml`; `teacher`, `baseline`, `distilled` and one folder a quantized variant, each a detector
    that `load` takes; `onnx/` with the exported files; `predictions/` in COCO's results format, one file a row;
    `benchmark.json`; `results.json`, `report.md`, `report.html`, `images.html`; `steps/` with what was done and in how many
    seconds.

    Raises UserError where the folder is not ours, and for every fault of the data, the models or the recipe.
    """
    out = Path(out)
    run = Run(recipe, out, command)
    claim_folder(out, "compress")
    write_text(out / "recipe.yaml", yaml.safe_dump(recipe.model_dump(mode="json", exclude_defaults=True), sort_keys=False))
    return run.run()


class Run:
    """One run of a recipe in a folder.

    Raises UserError for an unknown model, augmentation, scheme or engine, for a scheme's option that is none, and for two
    quantized variants of one name.
    """

    def __init__(self, recipe: Recipe, out: Path, command: str) -> None:
        self.recipe, self.out, self.command = recipe, out, command
        self.steps: list[dict[str, Any]] = []
        self.console = Console(stderr=True, highlight=False)
        self.variants = {f"distilled-{q.name or q.scheme}": q for q in recipe.quantization}
        if len(self.variants) < len(recipe.quantization):
            raise UserError("quantization: two variants would be in one folder; give them a name each")
        for variant in recipe.quantization:
            scheme_config(variant.scheme, **variant.options)
        for model in (recipe.teacher, recipe.student):
            if model.checkpoint is None and model.model not in MODELS:
                raise unknown("model", model.model, MODELS)
            if model.training.augment not in ("auto", *AUGMENTATIONS):
                raise unknown("augmentation", model.training.augment, ("auto", *AUGMENTATIONS))
        for engine in recipe.benchmark.runtimes:
            if engine not in ENGINES:
                raise unknown("engine", engine, ENGINES)

    def run(self) -> dict[str, Any]:
        data, data_key = self._data()
        self._rehearsed(data, data_key)
        teacher_key = self._model("teacher", self.recipe.teacher, data, data_key)
        student = self.recipe.student
        keys = {"teacher": teacher_key, "baseline": self._model("baseline", student, data, data_key)}
        keys["distilled"] = self._distilled(data, teacher_key, data_key)
        for name, variant in self.variants.items():
            keys[name] = self._quantized(name, variant, data, keys["distilled"])
        graphs = {name: self._exported(name, key) for name, key in keys.items()}
        rows, measured_on = self._rows(data, keys, graphs)
        results = {
            "environment": measured_on | {"seed": self.recipe.seed},
            "command": self.command,
            "recipe": (self.out / "recipe.yaml").read_text(encoding="utf-8"),
            "steps": self.steps,
            "rows": rows,
        }
        write_json(self.out / "results.json", results)
        split = find_split(data, "val")
        write_report(results, self.out, self._pictures(split, keys), class_map_of(split).names)
        return results

    def _step(self, name: str, made_from: Any, product: Path | None, work: Callable[[], str]) -> str:
        """Do `work`, which writes `product`, unless that is there and the step's note says that it is of the same input.

        Returns the input's fingerprint.
        """
        key = hashlib.sha256(json.dumps(made_from, sort_keys=True, default=str).encode()).hexdigest()[:16]
        note, folder = self.out / "steps" / f"{name}.json", self.out / name
        before = read_json(note) if note.exists() else {}
        if before.get("made_from") != key:
            note.unlink(missing_ok=True)
            if folder.is_dir():
                shutil.rmtree(folder)  # of another recipe; what a kill interrupted is continued instead
        elif "summary" in before and (product is None or product.exists()):
            self.steps.append({field: before[field] for field in ("name", "seconds", "summary")})
            return key
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

        return folder, self._step("data", shapes.model_dump(), folder / "annotations" / "instances_val.json", work)

    def _rehearsed(self, data: Path, data_key: str) -> None:
        """Build once what will be trained and quantized, so that what does not fit is said now and not after hours."""
        recipe = self.recipe

        def work() -> str:
            teacher, student = self._untrained(recipe.teacher, data), self._untrained(recipe.student, data)
            distillation = recipe.distillation
            methods = distillation.method.split(",")
            Distiller(student, teacher, build_terms(methods, student, teacher, distillation.weights, distillation.options))
            layers = [name for name, _ in student.model.named_modules(remove_duplicate=False)]
            for variant in recipe.quantization:
                scheme_config(variant.scheme, **variant.options).check_overrides(layers)
            return f"the recipe fits: teacher with {_millions(teacher)}, student with {_millions(student)}"

        self._step("rehearsal", [data_key, recipe.model_dump(exclude={"benchmark", "gallery", "calibration"})], None, work)

    def _untrained(self, model: Model, data: Path) -> Detector:
        if model.checkpoint is not None:
            return load(model.checkpoint)
        classes = class_map_of(find_split(data, "train"))
        return create(model.model, classes, self._size(model), model.backbone, model.weights, model.set)

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
            return f"{_schedule(model)}, {_millions(detector)}"

        made_from = [data_key, model.model_dump(), self._size(model), self.recipe.seed]
        return self._step(name, made_from, folder / "config.json", work)

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
            return f"{_schedule(student)} with {distillation.method}"

        made_from = [
            data_key,
            teacher_key,
            student.model_dump(),
            distillation.model_dump(),
            self._size(student),
            self.recipe.seed,
        ]
        return self._step("distilled", made_from, self.out / "distilled" / "config.json", work)

    def _building(self, model: Model) -> dict[str, Any]:
        training = model.training.model_copy(update={"seed": self.recipe.seed})
        shared = {"backbone": model.backbone, "weights": model.weights, "overrides": model.set, "training": training}
        return shared | {"image_size": self._size(model)}

    def _size(self, model: Model) -> tuple[int, int]:
        return model.image_size or self.recipe.image_size

    def _quantized(self, name: str, variant: Quantization, data: Path, student_key: str) -> str:
        def work() -> str:
            options = variant.options
            calibration = None if "calibration_images" in options else self.recipe.calibration
            detector = verbs.quantize(self.out / "distilled", data, variant.scheme, self.out / name, calibration, options)
            return detector.config.quantization_config.summary().splitlines()[0]

        made_from = [student_key, variant.model_dump(), self.recipe.calibration]
        return self._step(name, made_from, self.out / name / "config.json", work)

    def _exported(self, name: str, key: str) -> Path:
        graph = self.out / "onnx" / f"{name}.onnx"

        def work() -> str:
            verbs.export(self.out / name, graph)
            return f"{graph.stat().st_size / 1e6:.2f} MB"

        self._step(f"onnx-{name}", key, graph, work)
        return graph

    def _rows(
        self, data: Path, keys: Mapping[str, str], graphs: Mapping[str, Path]
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Accuracy of every artefact on every runtime, then the latency of all of them in one interleaved measurement, and the
        environment that it was taken in."""
        benchmark, split = self.recipe.benchmark, find_split(data, "val")
        measured = [(name, engine) for engine in benchmark.runtimes for name in keys]

        @functools.cache  # opened where a step needs it, and held once
        def runtime(name: str, engine: str) -> Runtime:
            return open_runtime(self.out / name if engine == "pytorch" else graphs[name], benchmark.threads, engine)

        def latencies() -> str:
            against = [measured.index(("distilled" if name in self.variants else name, engine)) for name, engine in measured]
            found = measure([runtime(*pair) for pair in measured], split, benchmark.repeats, against)
            write_json(file, {"environment": environment(), "measurements": found})
            return f"{benchmark.repeats} rounds of {len(measured)} candidates"

        accuracies = [self._evaluated(name, engine, keys[name], runtime, split) for name, engine in measured]
        file = self.out / "benchmark.json"
        self._step("benchmark", [dict(keys), benchmark.model_dump()], file, latencies)
        written = read_json(file)
        rows = [
            {"name": name} | accuracy | latency
            for (name, _), accuracy, latency in zip(measured, accuracies, written["measurements"], strict=True)
        ]
        return rows, written["environment"]

    def _evaluated(
        self, name: str, engine: str, key: str, runtime: Callable[[str, str], Runtime], split: Split
    ) -> dict[str, float]:
        label = f"{name}-{engine}"
        scores = self.out / "predictions" / f"{label}.metrics.json"

        def work() -> str:
            metrics, results = verbs.evaluate_runtime(runtime(name, engine), split)
            write_json(self.out / "predictions" / f"{label}.json", results)
            write_json(scores, metrics.as_dict())
            return f"AP {metrics.ap:.3f}"

        self._step(f"evaluate-{label}", [key, engine], scores, work)
        metrics = read_json(scores)
        return {field: metrics[field] for field in ROWS_OF_ONE}

    def _pictures(self, split: Split, names: Iterable[str]) -> list[Picture]:
        """Validation images with what each row's exported model found."""
        engines = self.recipe.benchmark.runtimes
        engine = "onnxruntime" if "onnxruntime" in engines else engines[0]
        found = {
            name: (read_json(self.out / "predictions" / f"{name}-{engine}.json"), load(self.out / name).class_map)
            for name in names
        }
        return validation_pictures(split, found, self.recipe.gallery)


def _millions(detector: Detector) -> str:
    return f"{sum(parameter.numel() for parameter in detector.parameters()) / 1e6:.2f} M parameters"


def _schedule(model: Model) -> str:
    training = model.training
    return f"{training.epochs} epochs" if training.max_steps is None else f"{training.max_steps} steps"
