"""The verbs of the command line as Python functions: each reads files, does one thing, writes files and returns what it
made."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate import PartialState
from torch.utils.data import DataLoader, Subset
from transformers import TrainerCallback

from leandetr.data.classification import ClassificationDataset, is_image_folder, write_crops
from leandetr.data.coco import CocoDataset, Split, class_map_of, collate, find_split
from leandetr.data.transforms import eval_transform, train_transform
from leandetr.deployment.benchmark import Measurement, measure
from leandetr.deployment.budget import Budget
from leandetr.deployment.budget import quantize_within as budgeted
from leandetr.deployment.onnx import export_onnx
from leandetr.deployment.openvino import check_xml, convert_openvino
from leandetr.deployment.predict import predict_images
from leandetr.deployment.runtimes import Runtime, load_answering, open_runtime
from leandetr.detectors.backbones import load_backbone_weights
from leandetr.detectors.create import MODELS, create
from leandetr.detectors.detector import Detector
from leandetr.detectors.load import load
from leandetr.detectors.teachers import TorchvisionDetector, load_torchvision, names_torchvision
from leandetr.distillation.distiller import Distiller
from leandetr.distillation.methods import build_terms
from leandetr.distillation.predictions import Predictions
from leandetr.errors import UserError, unknown
from leandetr.evaluation import coco
from leandetr.evaluation.coco import CocoMetrics
from leandetr.files import claiming, read_json, write_json
from leandetr.quantization.config import LowBit, Scheme, calibration_images, scheme_config
from leandetr.quantization.lowbit import LogClipped, finish, in_training
from leandetr.quantization.pretraining import round_backbone
from leandetr.quantization.quantize import quantize as quantize_detector
from leandetr.structures import ClassMap, Preprocessing
from leandetr.training import classification
from leandetr.training.config import Training
from leandetr.training.fit import fit, forget_checkpoints

Data = Path | str | Mapping[str, Split]


def split_of(data: Data, split: str) -> Split:
    """A split of a data folder, or of a mapping from split names to (annotations, images).

    Raises UserError where there is no such split.
    """
    if isinstance(data, Mapping):
        if split not in data:
            raise UserError(f"the data has no split {split!r}, only {', '.join(data)}; name its annotations and images too")
        return data[split]
    return find_split(data, split)


def train(
    data: Data,
    model: str,
    out: Path,
    image_size: tuple[int, int] | None = None,
    backbone: str | None = None,
    weights: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    training: Training | None = None,
    until: float = math.inf,
) -> Detector:
    """Train a detector on `train` and keep the best by AP on `val` in `out`.

    Args:
        data: a folder in COCO's layout, or its splits.
        model: a short name of `leandetr models`, or a saved detector or hub id to train further.
        image_size, backbone, weights, overrides: of a new detector, see `create`.
        until: a time of `time.monotonic()` at which a training that is not over stops with a checkpoint and OutOfTime.

    A training that was stopped or killed is continued when it is started again. Raises UserError for every fault of the input.
    """
    training = training or Training()
    building = {"image_size": image_size, "backbone": backbone, "weights": weights, "overrides": overrides or {}}
    with claiming(out, ["train", data, model, building, training.model_dump()]):
        if _finished(out):
            return load(out)
        student = _student(data, model, **building, seed=training.seed)
        return _fit(student, student, data, training, Path(out), until)


def distill(
    data: Data,
    teacher: str | Path,
    student: str,
    out: Path,
    method: str = "logits",
    term_weights: Mapping[str, float] | None = None,
    term_options: Mapping[str, Mapping[str, Any]] | None = None,
    image_size: tuple[int, int] | None = None,
    backbone: str | None = None,
    weights: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    training: Training | None = None,
    until: float = math.inf,
    cache_teacher: Path | None = None,
) -> Detector:
    """As `train`, while learning from `teacher` by one or more methods, joined by commas.

    teacher: a saved detector or hub id; for methods that learn from detections alone also a detector of torchvision (NAME or
    NAME:FILE, see `load_torchvision`), or a JSON in COCO's results format of the training images.
    term_weights: weight of a term in place of the method's own. term_options: a term's options by name, {"logits": {"stages":
    "last"}}.
    cache_teacher: folder in which the teacher's answers are kept, so that later epochs and trainings need no teacher; the
    training's views must come again, see `Training.views`.
    """
    training = training or Training()
    building = {"image_size": image_size, "backbone": backbone, "weights": weights, "overrides": overrides or {}}
    terms = [method, term_weights, term_options]
    with claiming(out, ["distill", data, teacher, student, *terms, building, training.model_dump()]):
        if _finished(out):
            return load(out)
        pupil = _student(data, student, **building, seed=training.seed)
        guide = open_teacher(teacher, pupil.class_map)
        terms = build_terms(method.split(","), pupil, guide, term_weights or {}, term_options or {})
        return _fit(Distiller(pupil, guide, terms), pupil, data, training, Path(out), until, cache_teacher)


def pretrain(
    data: Data,
    backbone: str,
    out: Path,
    image_size: tuple[int, int],
    weights: str | None = None,
    bits: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    training: Training | None = None,
) -> float:
    """Train a backbone to classify images and keep it as `out/backbone.safetensors`, which `train` takes as `weights`.

    Args:
        data: a folder with train/CLASS/ and val/CLASS/, or detection data, whose boxes are cut out into `out/crops`.
        backbone: any that `create` takes with weights.
        image_size: (height, width) that images are squeezed to.
        weights: to start from, as those of a new detector; random by default.
        bits: of the scheme low-bit, for training in which layers are rounded; the kept weights are float all the same.
        overrides: of the backbone's configuration.

    Returns the best top-1 on `val`, in [0, 1]. A training that was killed is continued when it is started again. Raises
    UserError for every fault of the input.
    """
    training = training or Training()
    low_bit = None if bits is None else LowBit(bits=bits, part="backbone")
    with claiming(out, ["pretrain", data, backbone, image_size, weights, bits, overrides or {}, training.model_dump()]):
        if (Path(out) / classification.WEIGHTS).exists():
            return read_json(Path(out) / classification.RESULT)["top1"]
        described = classification.describe(backbone, image_size, dict(overrides or {}))
        folder = data
        if isinstance(data, Mapping) or not is_image_folder(data):
            folder = write_crops({split: split_of(data, split) for split in ("train", "val")}, Path(out) / "crops")
        preprocessing = Preprocessing(size=tuple(image_size), mean=described.mean, std=described.std)
        train_set, val_set = (ClassificationDataset(folder, split, preprocessing, training.seed) for split in ("train", "val"))
        torch.manual_seed(training.seed)
        classifier = classification.Classifier(described, train_set.names)
        if weights is not None:
            load_backbone_weights(classifier.backbone, described.config, weights)
        if low_bit is not None:
            batches = _spread(train_set, min(low_bit.calibration_images, len(train_set)), classification.collate)
            round_backbone(classifier.backbone, low_bit, (batch["pixel_values"] for batch in batches))
        return classification.pretrain(classifier, train_set, val_set, training, Path(out), Path(out).name)


def quantize(
    model: str | Path,
    data: Data,
    scheme: str | Scheme,
    out: Path,
    calibration: int | None = None,
    options: Mapping[str, Any] | None = None,
    low_bit: LowBitTraining | None = None,
    until: float = math.inf,
) -> Detector:
    """Quantize a saved detector with a scheme and save the result in `out`.

    calibration: images of `train` for schemes that need them, or all where there are fewer; the scheme's own number by
    default.
    low_bit: how the scheme "low-bit" is trained; without it the calibrated grids are what is saved. until: as in `train`, for
    that training.

    Raises UserError for every fault of the input.
    """
    config = scheme if isinstance(scheme, Scheme) else scheme_config(scheme, **(options or {}))
    if calibration is not None:
        config = _calibrated_with(config, calibration)
    if low_bit is not None and not isinstance(config, LowBit):
        raise UserError(f"the scheme {config.name} is not trained; leave out teacher and schedule, or choose low-bit")
    trained = [] if low_bit is None else [asdict(low_bit) | {"training": low_bit.training.model_dump()}]
    with claiming(out, ["quantize", model, data, config.to_dict(), *trained]):
        if low_bit is not None:
            return _train_low_bit(load(model), data, config, Path(out), low_bit, until)
        quantized = _calibrated(load(model), data, config)
        if isinstance(config, LowBit):
            quantized = finish(quantized)
        quantized.save(Path(out))
        return quantized


def quantize_within(
    model: str | Path,
    data: Data,
    out: Path,
    budget: Budget,
    calibration: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> tuple[Detector, dict[str, Any]]:
    """Quantize a saved detector with calibrated grids, layer by layer as far as a budget allows, and save it in `out`; what the
    search found is in `search.json`.

    calibration, options: as in `quantize`, of the scheme static. Returns the detector and what is in the JSON.
    """
    config = scheme_config("static", **(options or {}))
    if calibration is not None:
        config = _calibrated_with(config, calibration)
    with claiming(out, ["quantize", model, data, config.to_dict(), asdict(budget)]):
        detector, found = budgeted(load(model), config, split_of(data, "train"), budget)
        detector.save(Path(out))
        write_json(Path(out) / "search.json", found)
        return detector, found


def _calibrated(detector: Detector, data: Data, config: Scheme) -> Detector:
    """The detector quantized, with images of `train` where the scheme needs them."""
    asked, batches = calibration_images(config), ()
    if asked:
        dataset = CocoDataset(split_of(data, "train"), eval_transform(detector.preprocessing), detector.class_map)
        config = _calibrated_with(config, min(asked, len(dataset)))
        batches = _spread(dataset, min(asked, len(dataset)))
    return quantize_detector(detector, config, batches)


@dataclass(frozen=True)
class LowBitTraining:
    """How a low-bit detector is trained.

    Args:
        training: the schedule of each stage.
        teacher: what it learns from beside its data, as in `distill`; the float detector itself can be it.
        method, term_weights, term_options: of the distillation, as in `distill`.
        stages: 2 trains with a quantized backbone and a float encoder and decoder first (Q-DETR, section 2.4), in
            `<out>/stage-1`, and then, from there, all of it.
        stage_one: the folder that such a first stage has left, in place of one.
    """

    training: Training
    teacher: str | Path | None = None
    method: str = "drd"
    term_weights: Mapping[str, float] = field(default_factory=dict)
    term_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    stages: int = 1
    stage_one: Path | None = None


def _train_low_bit(student: Detector, data: Data, config: LowBit, out: Path, plan: LowBitTraining, until: float) -> Detector:
    if _finished(out):
        return load(out)
    if plan.stage_one is not None:
        student = _first_stage(plan.stage_one, student)
    elif plan.stages == 2:
        first = out / "stage-1"
        if not _finished(first):
            _train_stage(student, data, replace(config, part="backbone"), first, plan, until)
        student = load(first)
    return _train_stage(student, data, config, out, plan, until, finish)


def _train_stage(
    student: Detector,
    data: Data,
    config: LowBit,
    out: Path,
    plan: LowBitTraining,
    until: float,
    finished: Callable[[Detector], Detector] | None = None,
) -> Detector:
    methods, guide = plan.method.split(","), None
    torch.manual_seed(plan.training.seed)
    if plan.teacher is not None:
        guide = open_teacher(plan.teacher, student.class_map)
        # what terms build into the student, such as aligned queries, has to be there when the grids are calibrated
        build_terms(methods, student, guide, plan.term_weights, plan.term_options)
    quantized = _calibrated(student, data, config)
    module = quantized
    if guide is not None:
        terms = build_terms(methods, quantized, guide, plan.term_weights, plan.term_options)
        module = Distiller(quantized, guide, terms)
    clipped = LogClipped(quantized)
    return _fit(module, quantized, data, plan.training, out, until, callbacks=[clipped], finished=finished)


def _first_stage(folder: Path, student: Detector) -> Detector:
    """The detector that a first stage has left. UserError where it is none, or one of another architecture or other classes."""
    first = load(folder)
    if _layers(first) != _layers(student) or first.config.model_type != student.config.model_type:
        raise UserError(
            f"{folder} is of another architecture ({first.config.model_type}) than the model ({student.config.model_type}); "
            "name a first stage that was trained from it"
        )
    if first.class_map != student.class_map:
        raise UserError(f"{folder} has other classes than the model; name a first stage that was trained from it")
    if not in_training(first):
        raise UserError(f"{folder} is no first stage; name the folder stage-1 that a training in two stages leaves")
    return first


def _layers(detector: Detector) -> dict[str, torch.Size]:
    kinds = torch.nn.Linear | torch.nn.Conv2d
    return {name: layer.weight.shape for name, layer in detector.model.named_modules() if isinstance(layer, kinds)}


def _calibrated_with(config: Scheme, images: int) -> Scheme:
    """The scheme and its overrides with so many calibration images."""

    def changed(setting: Any) -> Any:
        return replace(setting, calibration_images=images) if hasattr(setting, "calibration_images") else setting

    return changed(replace(config, overrides={pattern: changed(value) for pattern, value in config.overrides.items()}))


def _spread(
    dataset: CocoDataset | ClassificationDataset, images: int, collate: Callable[[list], dict] = collate
) -> Iterable[dict]:
    """Batches of images spread evenly over a data set."""
    chosen = torch.linspace(0, len(dataset) - 1, images).round().long().tolist()
    return DataLoader(Subset(dataset, chosen), batch_size=8, collate_fn=collate)


def evaluate(
    model: str | Path, data: Data, split: str = "val", engine: str | None = None, queries: str | None = None
) -> CocoMetrics:
    """COCO's numbers of a saved detector, an .onnx, an OpenVINO .xml, or a JSON in COCO's results format, on a split.

    queries: "object", "distillation" or "both", for a saved detector with distillation queries.
    """
    return coco.evaluate_results(*detections_of(model, data, split, engine, queries))


def detections_of(
    model: str | Path, data: Data, split: str = "val", engine: str | None = None, queries: str | None = None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The objects of a split as a COCO dictionary, and what a model (or file of results, as in `evaluate`) finds there."""
    chosen = split_of(data, split)
    if str(model).endswith(".json"):
        if queries is not None:
            raise UserError(f"{model} holds detections, not a detector with a choice of queries; leave out --queries")
        dataset = CocoDataset(chosen, eval_transform(Preprocessing()))
        results = read_json(Path(model))
        if not isinstance(results, list):
            raise UserError(f"{model} is not a list of detections in COCO's results format; name the file of results")
        return dataset.ground_truth(), results
    runtime = open_runtime(model, engine=engine, queries=queries)
    dataset = CocoDataset(chosen, runtime.transform, runtime.class_map)
    return dataset.ground_truth(), coco.predict_dataset(runtime, dataset, dataset.class_map)


def evaluate_runtime(runtime: Runtime, split: Split) -> tuple[CocoMetrics, list[dict[str, Any]]]:
    """The numbers and the detections (COCO's results format) of a runtime on a split."""
    dataset = CocoDataset(split, runtime.transform, runtime.class_map)
    return coco.evaluate(runtime, dataset)


def export(
    model: str | Path,
    out: Path,
    to: str = "onnx",
    image_size: tuple[int, int] | None = None,
    queries: str | None = None,
    end_to_end: bool = False,
    opset: int = 21,
) -> Path:
    """Write a saved detector as an .onnx file, or as OpenVINO's .xml and .bin.

    queries: as in `evaluate`. end_to_end: from the bytes of a photograph to detections in one graph. opset: of ONNX.
    """
    out = Path(out)
    if to not in ("onnx", "openvino"):
        raise unknown("format", to, ("onnx", "openvino"))
    if to == "onnx":
        return export_onnx(load_answering(model, queries), out, image_size, opset=opset, end_to_end=end_to_end)
    check_xml(out)
    with TemporaryDirectory() as folder:
        file = export_onnx(
            load_answering(model, queries), Path(folder) / "model.onnx", image_size, opset=opset, end_to_end=end_to_end
        )
        return convert_openvino(file, out)


def predict(
    model: str | Path,
    sources: Sequence[Path],
    out: Path,
    threshold: float = 0.3,
    form: str = "plain",
    annotations: Path | None = None,
    engine: str | None = None,
    queries: str | None = None,
) -> Path:
    """Detections of a saved detector or exported file on images and folders: drawn pictures and predictions.json in `out`.

    queries: as in `evaluate`.
    """
    runtime = open_runtime(model, engine=engine, queries=queries)
    with claiming(out, ["predict", model, form, queries]):
        return predict_images(runtime, sources, Path(out), threshold, form, annotations)


def benchmark(
    models: Sequence[str | Path], data: Data, engine: str | None = None, repeats: int = 50, threads: int | None = None
) -> list[Measurement]:
    """Latency of one photograph for each model, measured in turn on the same images; ratios are to the first model."""
    runtimes = [open_runtime(model, threads=threads, engine=engine) for model in models]
    return measure(runtimes, split_of(data, "val"), repeats=repeats)


def _finished(out: Path) -> bool:
    """A training writes its detector last."""
    return (Path(out) / "config.json").exists()


def _student(
    data: Data,
    model: str,
    image_size: tuple[int, int] | None,
    backbone: str | None,
    weights: str | None,
    overrides: Mapping[str, Any] | None,
    seed: int,
) -> Detector:
    if model not in MODELS:
        if not Path(model).exists() and "/" not in model:
            raise unknown("model", model, MODELS)
        if backbone or weights or image_size:
            raise UserError(f"{model} has its size, backbone and weights: leave out those of a new model")
        return load(model, overrides)
    if image_size is None:
        raise UserError(f"a new {model} needs a size: add --image-size HEIGHT WIDTH")
    torch.manual_seed(seed)
    return create(model, class_map_of(split_of(data, "train")), image_size, backbone, weights, dict(overrides or {}))


def open_teacher(teacher: str | Path, class_map: ClassMap) -> Detector | TorchvisionDetector | Predictions:
    """What `distill` learns from, by its name; `class_map`: the student's classes, for a file of detections."""
    if str(teacher).endswith(".json"):
        return Predictions(Path(teacher), class_map)
    return load_torchvision(str(teacher)) if names_torchvision(teacher) else load(teacher)


def _fit(
    module: Detector | Distiller,
    detector: Detector,
    data: Data,
    training: Training,
    out: Path,
    until: float,
    cache_teacher: Path | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    finished: Callable[[Detector], Detector] | None = None,
) -> Detector:
    """Train; what is saved and returned is the best detector, after `finished`."""
    preprocessing, class_map = detector.preprocessing, detector.class_map
    augment = training.augment
    if augment == "auto":
        augment = "detr" if preprocessing.size is None else "ssd"
    train_split, transform = split_of(data, "train"), train_transform(preprocessing, augment)
    detections = module.detections if isinstance(module, Distiller) else None
    views = 1 if augment == "none" else training.views
    train_set = CocoDataset(train_split, transform, class_map, training.seed, detections, views)
    val_set = CocoDataset(split_of(data, "val"), eval_transform(preprocessing), class_map)
    if cache_teacher is not None:
        passes = training.passes(len(train_set), PartialState().num_processes)
        module.remember(train_set, cache_teacher, passes, batch_size=training.batch_size, workers=training.loader_workers())
    if isinstance(module, Distiller):
        module.check(DataLoader(train_set, training.batch_size, collate_fn=collate))
    best = fit(module, train_set, val_set, training, out / "training", out.name, until, callbacks)
    best = finished(best) if finished else best
    if PartialState().is_main_process:
        best.save(out)
        forget_checkpoints(out / "training")
    PartialState().wait_for_everyone()
    return best
