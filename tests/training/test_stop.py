"""A training that is told to stop does so after a step, with a checkpoint; one that is told twice does at once."""

import os
import signal
from types import SimpleNamespace

import pytest

from leandetr.errors import Stopped, UserError
from leandetr.training.callbacks import StopAt
from leandetr.training.config import Training
from leandetr.training.fit import run


@pytest.fixture
def handled():
    """handled(signal, handler): the handler until the test is over."""
    before = {}

    def call(number, handler):
        before[number] = signal.signal(number, handler)

    yield call
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_heeded_at_the_end_of_a_step(number, handled):
    handled(number, signal.default_int_handler)
    stop, state = StopAt(float("inf")), SimpleNamespace(global_step=3, max_steps=9, epoch=0.5)
    control = SimpleNamespace(should_training_stop=False, should_save=False)
    with stop.at_signals():
        stop.on_step_end(None, state, control)
        assert not control.should_training_stop
        os.kill(os.getpid(), number)
        stop.on_step_end(None, state, control)
        assert stop.signal == number
        assert control.should_training_stop
        assert control.should_save
        with pytest.raises(Stopped, match="goes on from the last checkpoint") as stopped:
            os.kill(os.getpid(), number)
        assert stopped.value.status == 128 + number
    assert signal.getsignal(number) is signal.default_int_handler


def test_a_signal_that_the_process_was_started_to_ignore_stays_ignored(handled):
    handled(signal.SIGINT, signal.SIG_IGN)
    stop = StopAt(float("inf"))
    with stop.at_signals():
        os.kill(os.getpid(), signal.SIGINT)
    assert stop.signal is None


def test_a_killed_reader_is_a_sentence(tmp_path):
    def train(**_):
        raise RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. ")

    with pytest.raises(UserError, match=r"teacher: a process that reads images has ended .*pid 12.*training\.workers"):
        run(lambda _: SimpleNamespace(train=train), None, Training(), tmp_path, "teacher")


@pytest.mark.skipif(os.name == "nt", reason="the signal is sent as POSIX has it")
def test_a_signal_to_the_whole_group_is_a_stop_and_no_fault_of_a_reader(tmp_path):
    def train(**_):
        os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError("DataLoader worker (pid 12) is killed by signal: Terminated. ")

    with pytest.raises(Stopped, match="teacher: stopped within a step; the same command goes on") as caught:
        run(lambda _: SimpleNamespace(train=train), None, Training(), tmp_path, "teacher")
    assert caught.value.status == 143
