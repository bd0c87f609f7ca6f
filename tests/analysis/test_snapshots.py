"""Detectors are named by what tells them apart; a training stands for its kept epochs."""

from pathlib import Path

import pytest

from leandetr.analysis.snapshots import loader_of, over_training, shortest, single, spread
from leandetr.data.coco import find_split
from leandetr.errors import UserError


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["runs/a/teacher", "runs/a/student"], ["teacher", "student"]),
        (["runs/a/teacher", "runs/b/teacher"], ["a/teacher", "b/teacher"]),
        (["teacher", "runs/teacher"], ["teacher", "runs/teacher"]),
        (["/runs/teacher"], ["teacher"]),
        (["."], ["."]),
    ],
)
def test_names_are_short_and_tell_apart(paths, names):
    assert shortest([Path(path) for path in paths]) == names


def test_a_kept_epoch_is_named_after_its_training():
    found = single(["runs/a/teacher", "runs/a/student/training/epoch-1", "runs/a/student"])
    assert [snapshot.name for snapshot in found] == ["teacher", "student, epoch 1", "student"]
    assert [snapshot.epoch for snapshot in found] == [None, 1, None]
    assert [snapshot.run for snapshot in found] == ["teacher", "student", "student"]


def test_a_training_stands_for_its_kept_epochs_in_order(tmp_path):
    for epoch in ("epoch-10", "epoch-2", "epoch-x", "best"):
        (tmp_path / "run" / "training" / epoch).mkdir(parents=True)
    found = over_training([tmp_path / "run", tmp_path / "other"])  # the training goes on
    assert [snapshot.name for snapshot in found] == ["run, epoch 2", "run, epoch 10", "other"]
    (tmp_path / "run" / "config.json").touch()
    found = over_training([tmp_path / "run", tmp_path / "other"])
    assert [snapshot.name for snapshot in found] == ["run, epoch 2", "run, epoch 10", "run", "other"]


@pytest.mark.parametrize(("count", "wanted", "found"), [(5, None, 5), (5, 3, 3), (5, 1, 1), (3, 8, 3)])
def test_images_are_spread_without_repeats(count, wanted, found):
    chosen = spread(count, wanted)
    assert len(set(chosen)) == len(chosen) == found
    assert set(chosen) <= set(range(count))


def test_batches_hold_the_images_asked_for(build, split):
    detector = build()
    assert [len(batch["labels"]) for batch in loader_of(detector, split, None, batch_size=2)] == [2, 1]
    assert [len(batch["labels"]) for batch in loader_of(detector, split, 2)] == [2]


def test_another_data_set_is_refused(build, split, shared):
    with pytest.raises(UserError, match="class"):
        loader_of(build(), find_split(shared / "data" / "bccd", "val"), 1)
