"""What two processes label together is what one labels, to the byte; and what a killed run has labelled is not done again."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from leandetr import verbs
from leandetr.data.coco import CocoDataset, class_map_of, find_split
from leandetr.data.shapes import write_shapes
from leandetr.data.transforms import train_transform
from leandetr.detectors.create import create
from leandetr.distillation import DetectorTeacher
from leandetr.distillation.cache import TeacherCache
from leandetr.shards import Shards

SIZE = {"d_model": 32, "decoder_layers": 2, "encoder_layers": 1, "num_queries": 6, "decoder_ffn_dim": 32}


def label(detector, data, folder):
    """Everything that is shared among processes, into a folder; returns the numbers of an evaluation that keeps nothing."""
    split = find_split(data, "val")
    kept = verbs.evaluate(detector, data, out=folder / "evaluated")
    verbs.predict(detector, split.images, folder / "predicted", annotations=split.annotations, pictures=False)
    verbs.predict(detector, split.images, folder / "plain", threshold=0.1)
    teacher = verbs.open_teacher(detector, detector_of(data))
    dataset = CocoDataset(split, train_transform(teacher.detector.preprocessing, "ssd"), views=2)
    TeacherCache(folder / "cache", DetectorTeacher(teacher.detector, teacher.detector), dataset, {"logits", "boxes"}).fill(2, 4)
    numbers = verbs.evaluate(detector, data).as_dict()
    assert numbers == kept.as_dict()
    return numbers


def detector_of(data):
    torch.manual_seed(0)
    return create("detr", class_map_of(find_split(data, "val")), (64, 64), "test_resnet", overrides=SIZE).eval()


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """(data, detector, what one process has made, its numbers)"""
    folder = tmp_path_factory.mktemp("one")
    data = write_shapes(folder / "data", 2, 37, (64, 64))
    detector_of(data).save(folder / "detector")
    return data, folder / "detector", folder / "labels", label(folder / "detector", data, folder / "labels")


def contents(folder):
    """Of all files, but for markers and where a run's own folder is named."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes().replace(str(folder).encode(), b"")
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "leandetr.json"
    }


@pytest.mark.slow
def test_two_processes_label_what_one_labels_and_go_on_where_it_was_killed(labelled, tmp_path, monkeypatch):
    data, detector, expected, numbers = labelled
    keep, killed = Shards.keep, []

    def kill(self, number, rows, found):
        if number == 2:
            raise KeyboardInterrupt
        keep(self, number, rows, found)
        killed.append(number)

    monkeypatch.setattr(Shards, "keep", kill)
    with pytest.raises(KeyboardInterrupt):
        label(detector, data, tmp_path / "labels")
    assert killed == [0, 1]
    assert len(list((tmp_path / "labels" / "evaluated").glob(".shards-*/*.json"))) == 2

    script = tmp_path / "label.py"
    script.write_text(
        textwrap.dedent(f"""
        import json, os, sys
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_shards import Shards, label
        keep, kept = Shards.keep, []
        Shards.keep = lambda self, number, *rows: keep(self, number, *rows) or kept.append((self.folder.parent.name, number))
        numbers = label(Path({str(detector)!r}), Path({str(data)!r}), Path({str(tmp_path / "labels")!r}))
        Path({str(tmp_path)!r}, "kept-" + os.environ["RANK"]).write_text(json.dumps([numbers, kept]))
        """)
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(launch, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found = [json.loads((tmp_path / f"kept-{rank}").read_text()) for rank in range(2)]
    assert [numbers for numbers, _ in found] == [numbers, numbers]
    assert [[number for of, number in kept if of == "evaluated"] for _, kept in found] == [[2, 4], [3]]
    assert [[number for of, number in kept if of == "predicted"] for _, kept in found] == [[0, 2, 4], [1, 3]]
    assert contents(tmp_path / "labels") == contents(expected)
    assert "detections on 37 images, each image took" in run.stderr
    assert "74 views answered" in run.stderr


def test_shards_of_other_weights_are_made_anew(labelled, tmp_path, caplog):
    Shards(tmp_path, "weights of yesterday", 20).keep(0, [{"of": "yesterday"}], 1)
    shards = Shards(tmp_path, "weights of today", 20)
    assert shards.before == 0
    assert "what was begun with other input is removed, 1 shards" in caplog.text
    for number in shards.mine:
        shards.keep(number, [{"of": "today", "item": item} for item in shards.blocks[number]], 8)
    shards.merge(tmp_path / "rows.json", [{"of": "the end"}])
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert rows == [*({"of": "today", "item": item} for item in range(20)), {"of": "the end"}]
    assert [path.name for path in tmp_path.iterdir()] == ["rows.json"]


@pytest.mark.parametrize(("count", "size", "parts"), [(0, 8, 0), (5, 8, 1), (5000, 72, 70), (1_000_000, 128, 7813)])
def test_a_shard_is_small_where_there_are_few_and_never_large(tmp_path, count, size, parts):
    found = Shards(tmp_path, "", count).blocks
    assert len(found) == parts
    assert max(map(len, found), default=size) == min(size, count or size)
    assert [item for block in found for item in block] == list(range(count))
