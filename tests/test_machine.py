"""A device that is asked for is taken, or one sentence says why not."""

import os

import pytest
import torch

from leandetr import verbs
from leandetr.data.coco import class_map_of, find_split
from leandetr.data.shapes import write_shapes
from leandetr.deployment.pytorch import PyTorchRuntime
from leandetr.detectors.create import create
from leandetr.errors import UserError
from leandetr.machine import VISIBLE, chosen_device, use_device


@pytest.fixture
def machine(monkeypatch):
    """machine(gpus, visible, processes): a machine with so many GPUs, of which those of `visible` are seen."""

    def pretend(gpus, visible=None, processes=1):
        def seen():
            return len([name for name in os.environ.get(VISIBLE, "0,1,2,3"[: 2 * gpus]).split(",") if name]) if gpus else 0

        monkeypatch.setenv("WORLD_SIZE", str(processes))
        monkeypatch.setenv(VISIBLE, "")  # to be put back afterwards
        monkeypatch.delenv(VISIBLE)
        if visible is not None:
            monkeypatch.setenv(VISIBLE, visible)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: seen() > 0)
        monkeypatch.setattr(torch.cuda, "device_count", seen)

    return pretend


@pytest.mark.parametrize(
    ("asked", "gpus", "visible", "device", "left"),
    [
        ("auto", 0, None, "cpu", None),
        ("auto", 2, None, "cuda:0", None),
        ("cpu", 2, None, "cpu", ""),
        ("cuda", 2, "1", "cuda:0", "1"),
        ("cuda:1", 4, None, "cuda:0", "1"),
        ("cuda:1", 4, "3,GPU-b", "cuda:0", "GPU-b"),
    ],
)
def test_a_process_sees_the_device_that_it_was_told_to_use(machine, asked, gpus, visible, device, left):
    machine(gpus, visible)
    assert use_device(asked) == chosen_device() == torch.device(device)
    assert os.environ.get(VISIBLE) == left


@pytest.mark.parametrize(
    ("asked", "gpus", "visible", "processes", "said"),
    [
        ("gpu", 1, None, 1, "device 'gpu' is unknown: write auto, cpu, cuda, or cuda:N"),
        ("cuda:-1", 1, None, 1, "is unknown"),
        ("cuda", 0, None, 1, "device cuda: PyTorch finds no such GPU"),
        ("cuda:0", 0, None, 1, "device cuda:0: PyTorch finds no such GPU"),
        ("cuda:2", 4, "0,3", 1, "lets this process see 2 GPUs, counted from 0"),
        ("cuda:1", 4, None, 2, "every process of a distributed training has a GPU of its own"),
    ],
)
def test_a_device_that_is_not_there_is_one_sentence(machine, asked, gpus, visible, processes, said):
    machine(gpus, visible, processes)
    with pytest.raises(UserError, match=said):
        use_device(asked)


def test_the_processes_of_a_training_have_a_gpu_each(machine, monkeypatch):
    machine(2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert chosen_device() == torch.device("cuda", 1)


def test_workers_change_no_number_of_an_evaluation(tmp_path, monkeypatch):
    split = find_split(write_shapes(tmp_path / "data", 1, 20, (64, 64)), "val")
    detector = create("rt_detr_v2", class_map_of(split), (64, 64), "test_resnet", overrides={"num_queries": 12})
    answers = []
    for workers in (0, 2):
        monkeypatch.setattr("leandetr.verbs.artefacts.reading_processes", lambda workers=workers: workers)
        answers.append(verbs.evaluate_runtime(PyTorchRuntime(detector), split))
    assert answers[0] == answers[1]
    assert len(answers[0][1]) > 20
