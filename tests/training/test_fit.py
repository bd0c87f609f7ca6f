"""What a training promises: the best detector by AP, and after a kill the weights of a training that was never killed."""

import json
import math
import re
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from leandetr.detectors.checkpoints.load import load
from leandetr.distillation import Distillation, Distiller, build_terms
from leandetr.errors import UserError
from leandetr.training import fit as fitting
from leandetr.training import trainer as training
from leandetr.training.callbacks import LogFile, ap_by_epoch
from leandetr.training.fit import OutOfTime, fit, forget_checkpoints
from leandetr.training.trainer import DetectionTrainer, last_checkpoint


class Killed(BaseException):
    """Nobody catches it, as nobody catches a kill."""


def kill_at(step):
    class Killer(fitting.ProgressBar):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == step:
                raise Killed

    return Killer


@pytest.fixture
def killed(monkeypatch):
    """killed(output, at, detector, train, val, config): train and be killed after a step."""

    def run(output, at, detector, train, val, config):
        with monkeypatch.context() as patch:
            patch.setattr(fitting, "ProgressBar", kill_at(at))
            with pytest.raises(Killed):
                fit(detector, train, val, config, output, "killed")

    return run


def weights(output):
    """Everything that goes on from the last checkpoint: weights, their average, the optimiser."""
    folder = last_checkpoint(output)
    optimiser = torch.load(folder / "optimizer.pt", weights_only=True)["state"]
    moments = {f"{index}.{name}": value for index, state in optimiser.items() for name, value in state.items()}
    return load_file(folder / "training.safetensors") | load_file(folder / "average.safetensors") | moments


def assert_equal(first, second):
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.fixture
def scripted(monkeypatch):
    """scripted(0.1, 0.3): the APs of the evaluations to come."""

    def script(*values):
        left, real = list(values), training.evaluate_results

        def evaluate(truth, results):
            return type(real(truth, results))(**real(truth, results).as_dict() | {"ap": left.pop(0)})

        monkeypatch.setattr(training, "evaluate_results", evaluate)

    return script


@pytest.mark.parametrize(
    ("name", "workers"),
    [*(pytest.param(name, 0, marks=pytest.mark.slow) for name in ("detr", "rt_detr_v2")), ("rt_detr_v2", 1)],
)
def test_killed_and_started_again_it_ends_with_the_same_weights(prepared, short, killed, tmp_path, name, workers):
    detector, train, val = prepared(name)
    whole = fit(detector, train, val, short(workers=workers), tmp_path / "whole", "whole")

    kills = () if workers else ((2, None), (6, "checkpoint-4"))  # in the first epoch, and in the second
    for step, kept in kills:
        killed(tmp_path / "killed", step, *prepared(name), short(workers=workers))
        found = last_checkpoint(tmp_path / "killed")
        assert (found and found.name) == kept
    with pytest.raises(OutOfTime):
        fit(*prepared(name), short(workers=workers), tmp_path / "killed", "stopped", until=0.0)
    assert (tmp_path / "killed" / ("checkpoint-5" if kills else "checkpoint-1")).exists()  # in the middle of an epoch
    torch.manual_seed(99)  # another process has other generators
    detector, train, val = prepared(name)
    resumed = fit(detector, train, val, short(workers=workers), tmp_path / "killed", "killed")

    assert_equal(weights(tmp_path / "whole"), weights(tmp_path / "killed"))
    assert_equal(whole.state_dict(), resumed.state_dict())
    steps = [json.loads(line)["step"] for line in (tmp_path / "killed" / "log.jsonl").read_text().splitlines()]
    assert {4, 8} <= set(steps)
    assert steps == sorted(steps)


@pytest.mark.slow
def test_killed_while_it_writes_a_checkpoint_it_takes_the_one_before(prepared, short, tmp_path, monkeypatch):
    detector, train, val = prepared()
    fit(detector, train, val, short(), tmp_path / "whole", "whole")
    write = DetectionTrainer._save_rng_state

    def killed(self, folder):
        if self.state.global_step == 8:
            raise Killed
        write(self, folder)

    detector, train, val = prepared()
    with monkeypatch.context() as patch:
        patch.setattr(DetectionTrainer, "_save_rng_state", killed)
        with pytest.raises(Killed):
            fit(detector, train, val, short(), tmp_path / "killed", "killed")
    assert (tmp_path / "killed" / "checkpoint-8").exists()
    detector, train, val = prepared()
    fit(detector, train, val, short(), tmp_path / "killed", "killed")
    assert_equal(weights(tmp_path / "whole"), weights(tmp_path / "killed"))


def test_killed_after_the_last_step_nothing_is_trained_again(prepared, short, tmp_path):
    detector, train, val = prepared()
    first = fit(detector, train, val, short(), tmp_path, "first")
    before = weights(tmp_path)
    detector, train, val = prepared()
    again = fit(detector, train, val, short(), tmp_path, "again")
    assert_equal(weights(tmp_path), before)
    assert_equal(first.state_dict(), again.state_dict())
    forget_checkpoints(tmp_path)
    assert last_checkpoint(tmp_path) is None
    assert (tmp_path / "best").is_dir()


@pytest.mark.parametrize(("scores", "best"), [((0.5, 0.2), 0), ((0.2, 0.5), 1), ((-1.0, -1.0), 0)])
def test_best_by_ap_is_kept_with_its_averaged_weights(prepared, short, tmp_path, monkeypatch, scripted, scores, best):
    scripted(*scores)
    averages, evaluate = [], DetectionTrainer.measure

    def watched(self):
        averages.append({name: tensor.clone() for name, tensor in self.average.shadow.items()})
        return evaluate(self)

    monkeypatch.setattr(DetectionTrainer, "measure", watched)
    detector, train, val = prepared()
    found = fit(detector, train, val, short(), tmp_path, "best")
    assert len(averages) == 2
    state = found.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in averages[best].items())
    assert any(not torch.equal(state[name], tensor) for name, tensor in averages[1 - best].items())
    assert any(not torch.equal(state[name], tensor) for name, tensor in detector.state_dict().items())


@pytest.mark.parametrize("ema", [pytest.param(0.0, marks=pytest.mark.slow), 0.9])
def test_chosen_epochs_are_kept_as_detectors(prepared, short, tmp_path, ema):
    config = short(epochs=3, keep_epochs=[1, 3], ema=ema)
    detector, train, val = prepared()
    fit(detector, train, val, config, tmp_path / "kept", "kept")
    assert sorted(path.name for path in (tmp_path / "kept").glob("epoch-*")) == ["epoch-1", "epoch-3"]
    detector, train, val = prepared()
    first = fit(detector, train, val, short(epochs=3, ema=ema, max_steps=12, evaluate_every=3), tmp_path / "plain", "plain")
    assert_equal(load(tmp_path / "kept" / "epoch-3").state_dict(), first.state_dict())  # keeping changes no weight
    early = load(tmp_path / "kept" / "epoch-1").state_dict()
    assert any(not torch.equal(early[name], tensor) for name, tensor in first.state_dict().items())


def test_an_epoch_cut_short_is_not_kept(prepared, short, tmp_path):
    detector, train, val = prepared()
    fit(detector, train, val, short(max_steps=3, keep_epochs=[1]), tmp_path, "short")
    assert not list(tmp_path.glob("epoch-*"))


@pytest.mark.parametrize(
    ("changes", "evaluated"),
    [({"epochs": 3, "evaluate_every": 2}, [8, 12]), ({"max_steps": 3}, [3]), ({"epochs": 1}, [4])],
)
def test_evaluates_when_asked_and_at_the_end(prepared, short, tmp_path, changes, evaluated):
    detector, train, val = prepared()
    fit(detector, train, val, short(**changes), tmp_path, "evaluated")
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "eval_ap" in row] == evaluated
    assert len([path for path in tmp_path.glob("checkpoint-*")]) == 1


def test_views_follow_the_epoch_also_after_a_kill(prepared, short, killed, tmp_path):
    def told(kill_step=None):
        detector, train, val = prepared()
        epochs, tell = [], train.set_epoch
        train.set_epoch = lambda epoch: (epochs.append(epoch), tell(epoch))
        if kill_step is None:
            fit(detector, train, val, short(epochs=3), tmp_path, "told")
        else:
            killed(tmp_path, kill_step, detector, train, val, short(epochs=3))
        return list(dict.fromkeys(epochs))

    assert told(kill_step=6) == [0, 1]
    assert told() == [1, 2]


@pytest.mark.parametrize("asked", [False, True])
def test_tensorboard_when_asked(prepared, short, tmp_path, asked):
    pytest.importorskip("tensorboard")
    detector, train, val = prepared()
    fit(detector, train, val, short(max_steps=1, tensorboard=asked), tmp_path, "board")
    assert bool(list(tmp_path.rglob("events.out.tfevents*"))) == asked


def test_a_full_disk_is_one_sentence_and_the_last_whole_checkpoint_stays(prepared, short, tmp_path, monkeypatch):
    def full(self, folder):
        if self.state.global_step == 8:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(DetectionTrainer, "_save_rng_state", full)
    detector, train, val = prepared()
    with pytest.raises(UserError, match=r"cannot write .*checkpoint-8: No space left on device"):
        fit(detector, train, val, short(), tmp_path, "full")
    assert last_checkpoint(tmp_path).name == "checkpoint-4"


@pytest.mark.parametrize("name", ["detr", "rt_detr_v2"])
def test_a_training_that_diverges_is_one_sentence(prepared, short, tmp_path, name):
    detector, train, val = prepared(name)
    with pytest.raises(UserError) as caught:
        fit(detector, train, val, short(lr=1e6), tmp_path, "wild")
    assert re.fullmatch(
        r"the (loss|gradient) is not a number at step \d: .* not finite.*; lower training.lr or training.clip",
        str(caught.value),
    )


@pytest.mark.parametrize(("stop", "writes"), [(2, [2]), (4, [4]), (6, [4, 6])])
def test_a_training_that_stops_writes_each_checkpoint_once(prepared, short, tmp_path, monkeypatch, stop, writes):
    class Stop(fitting.StopAt):
        def on_step_end(self, args, state, control, **kwargs):
            self.until = -math.inf if state.global_step == stop else math.inf
            super().on_step_end(args, state, control, **kwargs)

    written, save = [], DetectionTrainer._save
    monkeypatch.setattr(fitting, "StopAt", Stop)
    monkeypatch.setattr(DetectionTrainer, "_save", lambda self, *a: (written.append(self.state.global_step), save(self, *a)))
    detector, train, val = prepared()
    with pytest.raises(fitting.OutOfTime):
        fit(detector, train, val, short(), tmp_path, "stopped")
    assert written == writes
    assert last_checkpoint(tmp_path).name == f"checkpoint-{stop}"


def test_a_line_that_a_kill_has_cut_is_left_out_of_the_log(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 4, "eval_ap": 0.1, "epoch": 1.0}\n{"step": 8, "lo')
    state = SimpleNamespace(is_world_process_zero=True, global_step=8)
    for ap in (0.2, 0.3):
        LogFile(log).on_log(None, state, None, {"eval_ap": ap, "epoch": 10 * ap})
    assert ap_by_epoch(tmp_path) == {1: 0.1, 2: 0.2, 3: 0.3}
    assert len(log.read_text().splitlines()) == 4


@pytest.mark.parametrize(("weight", "warnings"), [(1e5, 1), (1e-3, 0)])
def test_a_term_that_drowns_the_others_is_said_once(prepared, short, tmp_path, capsys, weight, warnings):
    (student, train, val), (teacher, _, _) = prepared(), prepared(d_model=48)
    terms = build_terms(Distillation(method="logits", weights={"logits": weight}), student, teacher)
    fit(Distiller(student, teacher, terms), train, val, short(), tmp_path, "drowned")
    said = re.findall(r"drowned: warning: the term logits is (?:99.\d|100.0)% of the loss", capsys.readouterr().err)
    assert len(said) == warnings
