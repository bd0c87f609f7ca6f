"""What the training engine promises: who learns how fast, what is evaluated, and that cutting a batch changes nothing."""

from types import SimpleNamespace

import pytest
import torch

from leandetr.detectors.checkpoints.load import load
from leandetr.errors import UserError
from leandetr.training import compiler
from leandetr.training import trainer as engine
from leandetr.training.trainer import DetectionTrainer, Diverged, last_checkpoint

STILL = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}


@pytest.mark.parametrize("name", ["detr", "deformable_detr", "rt_detr_v2"])
def test_parameter_groups(prepared, short, tmp_path, name):
    detector, train, val = prepared(name)
    config = short(lr=1e-3, backbone_lr=0.2, weight_decay=0.01)
    trainer = DetectionTrainer(detector, train, val, config, tmp_path, [])
    setting = {
        id(p): (group["lr"], group["weight_decay"])
        for group in trainer.create_optimizer().param_groups
        for p in group["params"]
    }
    parameters = dict(detector.named_parameters())
    assert len(setting) == len(parameters)
    for key, parameter in parameters.items():
        rate, decay = setting[id(parameter)]
        slow = "sampling_offsets" in key or "reference_points" in key
        assert rate == pytest.approx(2e-4 if "backbone" in key else 1e-4 if slow else 1e-3), key
        norm_or_bias = key.endswith("bias") or "norm" in key or parameter.ndim < 2
        assert decay == (0 if norm_or_bias else 0.01), key
    assert any("sampling_offsets" in key for key in parameters) == (name != "detr")


#: three blocks of a vision transformer, four stages of one block of a ResNet; by hand, with a decay of 0.5
RATES = {
    "rf_detr": {
        "embeddings.cls_token": 1 / 16,
        "embeddings.position_embeddings": 1 / 16,
        "embeddings.patch_embeddings.projection.weight": 1 / 16,
        "encoder.layer.0.norm1.weight": 1 / 8,
        "encoder.layer.1.attention.q_proj.weight": 1 / 4,
        "encoder.layer.2.mlp.fc2.bias": 1 / 2,
        "layernorm.weight": 1,
    },
    "rt_detr_v2": {
        "conv1.0.weight": 1 / 32,
        "layer1.0.conv1.weight": 1 / 16,
        "layer2.0.downsample.1.weight": 1 / 8,
        "layer3.0.conv2.weight": 1 / 4,
        "layer4.0.conv1.weight": 1 / 2,
    },
}


@pytest.mark.parametrize("name", RATES)
def test_layers_of_the_backbone_learn_the_slower_the_nearer_to_the_image(tiny_detector, prepared, short, tmp_path, name):
    _, train, val = prepared()
    vit = {"num_hidden_layers": 3, "num_attention_heads": 2, "out_indices": [1, 3], "hidden_size": 32, "num_windows": 1}
    values = {f"backbone_config.{key}": value for key, value in vit.items()} if name == "rf_detr" else {}
    detector = tiny_detector(name, None if values else "test_resnet", **values)
    config = short(lr=1e-3, backbone_lr=0.2, layer_decay=0.5)
    trainer = DetectionTrainer(detector, train, val, config, tmp_path, [])
    rates = {p: group["lr"] for group in trainer.create_optimizer().param_groups for p in group["params"]}
    backbone = detector.family.backbone(detector.model)
    found = {key.split("_backbone.")[-1]: rates[parameter] for key, parameter in backbone.named_parameters()}
    for key, factor in RATES[name].items():
        assert found[key] == pytest.approx(1e-3 * 0.2 * factor), key
    inside = set(backbone.parameters())
    assert {round(rates[p], 9) for p in detector.parameters() if p not in inside} == {1e-3, 1e-4}


def test_evaluation_is_of_the_average_and_gives_the_weights_back(prepared, short, tmp_path, monkeypatch):
    detector, train, val = prepared()
    trainer = DetectionTrainer(detector, train, val, short(), tmp_path, [])
    key, parameter = next(iter(detector.named_parameters()))
    with torch.no_grad():
        parameter.add_(1.0)
    own, seen = parameter.detach().clone(), []
    predict = detector.predict
    monkeypatch.setattr(detector, "predict", lambda batch: (seen.append(parameter.detach().clone()), predict(batch))[1])
    state = torch.get_rng_state()
    logs = trainer.evaluate()
    assert all(torch.equal(tensor, trainer.average.shadow[key]) for tensor in seen)
    assert len(seen) == 2  # three images, two a batch
    assert torch.equal(parameter, own)
    assert torch.equal(torch.get_rng_state(), state)
    assert len([name for name in logs if name.startswith("eval_")]) == 12
    assert -1 <= logs["eval_ap"] <= 1


def moments(prepared, config, output):
    """AdamW's first moments after a training: linear in the gradients, unlike the weights, whose steps it makes equal in
    size."""
    detector, train, val = prepared("detr", augment="none", **STILL)
    DetectionTrainer(detector, train, val, config, output, []).train()
    state = torch.load(last_checkpoint(output) / "optimizer.pt", weights_only=True)["state"]
    return {index: entry["exp_avg"] for index, entry in state.items()}


def test_accumulated_batches_learn_what_the_large_batch_learns(prepared, short, tmp_path):
    shared = {"epochs": 1, "ema": 0, "clip": 1e6, "max_steps": 2}
    large = moments(prepared, short(batch_size=4, **shared), tmp_path / "large")
    small = moments(prepared, short(batch_size=2, accumulate=2, **shared), tmp_path / "small")
    for index, moment in large.items():
        torch.testing.assert_close(small[index], moment, rtol=1e-3, atol=1e-5)


def test_gradients_are_clipped(prepared, short, tmp_path):
    clipped = moments(prepared, short(max_steps=1, clip=1e-3), tmp_path / "clipped")
    norm = torch.stack([moment.norm() for moment in clipped.values()]).norm() / 0.1  # the first moment after one step
    assert norm.item() == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="here half precision is possible")
def test_half_precision_without_a_gpu_is_one_sentence(prepared, short, tmp_path):
    detector, train, val = prepared()
    with pytest.raises(UserError, match=r"training.precision: float16 needs a GPU"):
        DetectionTrainer(detector, train, val, short(precision="float16"), tmp_path, [])


def test_bfloat16_trains(prepared, short, tmp_path):
    detector, train, val = prepared()
    before = {key: tensor.clone() for key, tensor in detector.state_dict().items()}
    result = DetectionTrainer(detector, train, val, short(precision="bfloat16", max_steps=1), tmp_path, []).train()
    assert torch.isfinite(torch.tensor(result.training_loss))
    assert {tensor.dtype for tensor in detector.parameters()} == {torch.float32}
    assert any(not torch.equal(tensor, before[key]) for key, tensor in detector.state_dict().items())


def test_half_written_checkpoints_are_removed_and_the_newest_whole_one_found(tmp_path):
    for step, whole in ((8, True), (16, True), (100, False)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if whole:
            (tmp_path / f"checkpoint-{step}" / "complete").touch()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-16"
    assert not (tmp_path / "checkpoint-100").exists()
    assert last_checkpoint(tmp_path / "absent") is None


def test_one_process_takes_one_gpu_and_only_a_precision_that_it_has(short, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(engine, "TrainingArguments", lambda **named: SimpleNamespace(n_gpu=2, **named))
    arguments = engine._arguments(short(precision="auto"), tmp_path, 8)
    assert arguments._n_gpu == 1
    assert not arguments.bf16


def test_weights_that_are_cut_up_are_refused(short, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match="FSDP cuts up the weights"):
        engine._arguments(short(), tmp_path, 8)


def test_validation_images_are_read_by_the_trainings_workers(prepared, short, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(engine, "predict_together", lambda *a, device: given.append(a[2:]) or [])
    detector, train, val = prepared()
    DetectionTrainer(detector, train, val, short(workers=3), tmp_path, []).measure()
    assert given == [(2, 3)]


def test_an_evaluation_that_answers_nan_is_a_training_that_diverged(prepared, short, tmp_path):
    detector, train, val = prepared()
    trainer = DetectionTrainer(detector, train, val, short(ema=0), tmp_path, [])
    with torch.no_grad():
        detector.model.bbox_predictor.layers[0].weight.fill_(torch.nan)
    with pytest.raises(Diverged, match="the loss is not a number at step 0"):
        trainer.evaluate()


def test_a_checkpoint_that_is_being_rewritten_is_not_taken_for_whole(prepared, short, tmp_path, monkeypatch):
    detector, train, val = prepared()
    trainer = DetectionTrainer(detector, train, val, short(max_steps=1), tmp_path, [])
    trainer.train()
    assert last_checkpoint(tmp_path).name == "checkpoint-1"

    def killed(folder, *_):
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "_save", killed)
    with pytest.raises(KeyboardInterrupt):
        trainer._save_checkpoint(trainer.model, None)
    assert last_checkpoint(tmp_path) is None


@pytest.mark.slow
def test_a_compiled_backbone_trains_to_the_same_weights_and_is_saved_as_any(prepared, short, tmp_path, monkeypatch):
    real, given = torch.nn.Module.compile, []
    # the graphs of inductor without its minutes of C++
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: given.append(self) or real(self, backend="aot_eager"))
    states = []
    for compiled in (None, True):
        detector, train, val = prepared()
        config = short(max_steps=2, compile=compiled)
        DetectionTrainer(detector, train, val, config, tmp_path / str(compiled), []).train()
        detector.save(tmp_path / str(compiled) / "kept")
        states.append(load(tmp_path / str(compiled) / "kept").state_dict())
        assert given == ([detector.family.backbone(detector.model)] if compiled else [])
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], rtol=1e-3, atol=1e-4)


def test_without_a_compiler_it_is_said_at_once(prepared, short, tmp_path, monkeypatch):
    monkeypatch.setattr(compiler.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"training\.compile: there is no C\+\+ compiler; install g\+\+ or set"):
        DetectionTrainer(*prepared(), short(compile=True), tmp_path, [])
