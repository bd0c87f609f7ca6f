"""Low-bit training as a user starts it: stages, what is left in the folder, going on after a stop, and refused input."""

import json
import math
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from leandetr import verbs
from leandetr.data.coco import class_map_of, find_split
from leandetr.data.shapes import write_shapes
from leandetr.detectors.alignment import align_queries
from leandetr.detectors.checkpoints.load import load
from leandetr.detectors.create import create
from leandetr.distillation import Teaching
from leandetr.errors import UserError
from leandetr.quantization import LowBit, in_training
from leandetr.training.config import Training
from leandetr.training.fit import OutOfTime
from leandetr.verbs.calibration import calibrate_alignment, calibrated

SMALL = {
    "d_model": 32,
    "decoder_layers": 2,
    "encoder_layers": 1,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "num_queries": 8,
}
CONFIG = LowBit(bits="4-4-8", calibration_images=4)
SCHEDULE = Training(max_steps=4, batch_size=2, lr=1e-3, workers=0, augment="none", grid_frozen=0.5)


def taught_by(teacher):
    return Teaching(teacher=teacher, method="drd")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("shapes") / "data", 4, 2, (64, 64))


@pytest.fixture(scope="module")
def models(shapes, tmp_path_factory):
    """Folder of a saved detector by its family."""
    classes, folder, saved = class_map_of(find_split(shapes, "train")), tmp_path_factory.mktemp("models"), {}
    for name in ("detr", "conditional_detr"):
        torch.manual_seed(0)
        create(name, classes, (64, 64), "test_resnet", overrides=SMALL).save(folder / name)
        saved[name] = folder / name
    return saved


@pytest.mark.slow
@pytest.mark.parametrize("stages", [1, 2])
def test_a_stopped_training_ends_with_the_weights_of_one_that_was_not(shapes, models, tmp_path, stages):
    def quantize(out, until=math.inf):
        plan = verbs.LowBitTraining(training=SCHEDULE, teaching=taught_by(models["detr"]), stages=stages)
        return verbs.quantize(models["detr"], shapes, CONFIG, out, low_bit=plan, until=until)

    whole = quantize(tmp_path / "whole")
    assert not in_training(whole)
    for _ in range(20):
        try:
            quantize(tmp_path / "stopped", time.monotonic())
            break
        except OutOfTime:
            continue
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "stopped"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    if stages == 2:
        assert in_training(load(tmp_path / "whole" / "stage-1"))
    log = [json.loads(line) for line in (tmp_path / "whole" / "training" / "log.jsonl").read_text().splitlines()]
    clipped = {key: value for row in log for key, value in row.items() if key.startswith("clipped/")}
    assert "clipped/model.decoder.layers.0.encoder_attn/query" in clipped
    assert "clipped/model.decoder.layers.0.mlp.fc1/weight" in clipped
    assert all(0 <= value <= 1 for value in clipped.values())


@pytest.mark.usefixtures("few_steps")
def test_without_training_the_calibrated_grids_are_saved(shapes, models, tmp_path):
    found = verbs.quantize(models["detr"], shapes, CONFIG, tmp_path / "out")
    assert not in_training(found)
    assert found.config.quantization_config.scheme["bits"] == "4-4-8"


def test_grids_do_not_decay_and_wait_where_asked(shapes, models):
    from leandetr.data.coco import CocoDataset
    from leandetr.data.transforms import eval_transform
    from leandetr.training.trainer import DetectionTrainer

    detector = load(models["detr"])
    dataset = CocoDataset(find_split(shapes, "train"), eval_transform(detector.preprocessing), detector.class_map)
    quantized = calibrated(detector, shapes, CONFIG)
    trainer = DetectionTrainer(quantized, dataset, dataset, SCHEDULE, models["detr"].parent / "trainer", [])
    optimizer = trainer.create_optimizer()
    scheduler = trainer.create_scheduler(4, optimizer)
    grids = {id(p) for name, p in quantized.named_parameters() if name.endswith(("raw_step", "raw_zero_point"))}
    for group in optimizer.param_groups:
        assert group["grid"] == all(id(parameter) in grids for parameter in group["params"])
        assert group["weight_decay"] == 0 or not group["grid"]
    rates = []
    for _ in range(4):
        rates.append(next(group["lr"] for group in optimizer.param_groups if group["grid"]))
        optimizer.step()
        scheduler.step()
    assert rates[:2] == [0, 0]
    assert rates[2] > 0


def test_what_cannot_be_is_said_in_one_sentence(shapes, models, tmp_path):
    def quantize(scheme=CONFIG, model="detr", **options):
        plan = verbs.LowBitTraining(training=SCHEDULE, **options)
        verbs.quantize(models[model], shapes, scheme, tmp_path / "out", low_bit=plan)

    with pytest.raises(UserError, match="static is not trained"):
        quantize("static")
    with pytest.raises(UserError, match="of another architecture"):
        quantize(stage_one=models["conditional_detr"])
    with pytest.raises(UserError, match="is no first stage"):
        quantize(stage_one=models["detr"])
    with pytest.raises(UserError, match=r"no data: give"):
        verbs.quantize(models["detr"], {}, CONFIG, tmp_path / "out")


@pytest.mark.slow
def test_aligned_queries_begin_as_those_that_the_detector_was_trained_with(shapes, models, tmp_path):
    """Scale and shift start where they were fitted and, the rate being 0, stay there; in a second stage too."""
    still = SCHEDULE.model_copy(update={"lr": 1e-12, "max_steps": 1, "weight_decay": 0.0})
    plan = verbs.LowBitTraining(training=still, teaching=taught_by(models["detr"]), stages=2)
    found = verbs.quantize(models["detr"], shapes, CONFIG, tmp_path / "out", low_bit=plan)
    expected = load(models["detr"])
    align_queries(expected.model)
    calibrate_alignment(expected, shapes, CONFIG.calibration_images)
    for detector in (load(tmp_path / "out" / "stage-1"), found):
        for ours, theirs in zip(detector.model.model.decoder.layers, expected.model.model.decoder.layers, strict=True):
            ours, theirs = (layer.encoder_attn.slots.align for layer in (ours, theirs))
            assert (theirs.weight - 1).abs().max() > 0.1
            torch.testing.assert_close(ours.weight, theirs.weight)
            torch.testing.assert_close(ours.bias, theirs.bias)


@pytest.mark.slow
def test_eight_bits_start_at_the_float_accuracy(tmp_path):
    """A trained detector of the synthetic shapes, calibrated at 8 bits and not trained."""
    teacher = Path(__file__).resolve().parents[1] / "recipes" / "shapes-teacher"
    data = write_shapes(tmp_path / "data", 32, 60, load(teacher).preprocessing.size)
    verbs.quantize(teacher, data, LowBit(bits="8-8-8", calibration_images=32), tmp_path / "eight")
    expected, found = (verbs.evaluate(folder, data).ap for folder in (teacher, tmp_path / "eight"))
    assert expected > 0.3
    assert abs(found - expected) < 0.005


def test_a_second_stage_begins_with_the_adapters_of_the_first(shapes, models, tmp_path, monkeypatch):
    """Killed when it begins, begun again, and from the folder of another training's first stage too."""
    wide, begun, fit_detector = models["detr"].parent / "wide", [], verbs.low_bit.fit_detector
    create("detr", load(models["detr"]).class_map, (64, 64), "test_resnet", overrides=SMALL | {"d_model": 64}).save(wide)

    def watched(module, *given, **named):
        begun.append(module.terms.state_dict()["drd.adapter.weight"].clone())
        if len(begun) > 1:
            raise KeyboardInterrupt
        return fit_detector(module, *given, **named)

    monkeypatch.setattr(verbs.low_bit, "fit_detector", watched)
    short = SCHEDULE.model_copy(update={"max_steps": 2})
    teaching = Teaching(teacher=wide, method="drd", options={"drd": {"tau": 0}})
    first = tmp_path / "out" / "stage-1"
    for out, stages in (("out", {"stages": 2}), ("out", {"stages": 2}), ("other", {"stage_one": first})):
        plan = verbs.LowBitTraining(training=short, teaching=teaching, **stages)
        with pytest.raises(KeyboardInterrupt):
            verbs.quantize(models["detr"], shapes, CONFIG, tmp_path / out, low_bit=plan)
    trained = load_file(first / "adapters.safetensors")["drd.adapter.weight"]
    assert not torch.equal(begun[0], trained)
    assert [torch.equal(adapter, trained) for adapter in begun[1:]] == [True] * 3
