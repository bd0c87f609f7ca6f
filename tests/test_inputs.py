"""The state of what a command reads: changed input is never taken for what it was."""

import doctest
import json

import pytest

from leandetr import inputs
from leandetr.data.shapes import write_shapes
from leandetr.data.splits import find_split, split_state
from leandetr.errors import UserError
from leandetr.files import MARKER, claim_folder
from leandetr.inputs import changed, weights_state


def test_the_examples_in_the_docstrings_hold():
    tried = doctest.testmod(inputs)
    assert tried.attempted > 0
    assert tried.failed == 0


def relabel(data):
    file = data / "annotations" / "instances_train.json"
    file.write_text(file.read_text().replace('"disc"', '"disk"'))


def repaint(data):
    image = data / "train" / "000001.jpg"
    image.write_bytes(image.read_bytes() + b"\0")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (relabel, "annotations of train"),
        (repaint, "images of train"),
        (lambda data: (data / "train" / "000002.jpg").unlink(), "images of train"),
    ],
)
def test_what_changed_in_place_is_named(tmp_path, change, what):
    data = write_shapes(tmp_path / "data", 2, 1, (64, 64))
    before = split_state("train", find_split(data, "train"))
    assert changed(before, split_state("train", find_split(data, "train"))) == ""
    change(data)
    assert changed(before, split_state("train", find_split(data, "train"))) == what


def test_other_files_beside_the_images_change_nothing(tmp_path):
    data = write_shapes(tmp_path / "data", 2, 1, (64, 64))
    before = split_state("train", find_split(data, "train"))
    (data / "train" / "notes.txt").write_text("mine")
    (data / "runs").mkdir()
    assert split_state("train", find_split(data, "train")) == before


def test_weights_are_known_by_their_bytes_and_what_is_no_file_by_nothing(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"abc")
    before = weights_state("teacher", tmp_path)
    (tmp_path / "training").mkdir()
    (tmp_path / MARKER).write_text("{}")
    assert weights_state("teacher", tmp_path) == before
    (tmp_path / "model.safetensors").write_bytes(b"abd")  # of the same size
    assert changed(before, weights_state("teacher", tmp_path)) == f"teacher {tmp_path}"
    assert weights_state("teacher", "hub") == weights_state("teacher", None) == {}


def test_a_folder_of_changed_input_is_refused_and_one_of_an_earlier_version_is_not(tmp_path):
    claim_folder(tmp_path / "run", ["train"])  # as leandetr 0.1 did
    claim_folder(tmp_path / "run", ["train"], {"annotations of train": "a"})
    claim_folder(tmp_path / "run", ["train"], {"annotations of train": "a"})
    with pytest.raises(UserError, match="other input: changed since are annotations of train; remove it, or name another"):
        claim_folder(tmp_path / "run", ["train"], {"annotations of train": "b"})
    assert json.loads((tmp_path / "run" / MARKER).read_text())["state"] == {"annotations of train": "a"}
