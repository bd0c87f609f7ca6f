"""A video's prediction promises a video of its size, rate and length, and a line of JSON a frame; in little memory."""

import json
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from leandetr.data.transforms import eval_transform
from leandetr.deployment import video
from leandetr.deployment.predict import predict_sources
from leandetr.deployment.runtime import Runtime
from leandetr.errors import UserError
from leandetr.structures import ClassMap, Detections, Preprocessing

av = pytest.importorskip("av")


class Upper(Runtime):
    """Finds the upper left quarter, as sure as the image is bright."""

    preprocessing, class_map = Preprocessing(size=(8, 8)), ClassMap(("cat",), (1,))
    transform = eval_transform(preprocessing)

    def __init__(self):
        """Of no artefact."""

    def __call__(self, batch):
        height, width = batch["labels"][0]["orig_size"].tolist()
        boxes = torch.tensor([[0.0, 0.0, width / 2, height / 2]])
        return [Detections(batch["pixel_values"].mean().reshape(1), torch.tensor([0]), boxes)]


def write(path, photographs, size=(96, 64), rate=Fraction(25, 2), ticks=range(12), codec="libx264"):
    """A photograph a frame, shown at these ticks of 1 / rate seconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        (stream.width, stream.height), stream.pix_fmt = size, "yuv444p" if size[0] % 2 else "yuv420p"
        for photograph, tick in zip(photographs, ticks):
            frame = av.VideoFrame.from_image(Image.open(photograph).convert("RGB").resize(size))
            frame.pts, frame.time_base = tick, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def read(path):
    with av.open(str(path)) as container:
        (stream,) = container.streams
        frames = [(round(frame.time, 3), frame.to_ndarray(format="rgb24")) for frame in container.decode(stream)]
        return (stream.width, stream.height, stream.average_rate), frames


@pytest.fixture
def photographs(shared):
    return sorted((shared / "data/bccd/val").glob("*.jpg"))[:12]


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("a.mp4", {}),
        ("odd.mkv", {"size": (97, 65)}),
        ("old.avi", {"codec": "mpeg4", "rate": Fraction(30000, 1001)}),
        ("uneven.mp4", {"ticks": [0, 1, 2, 5, 6, 9]}),
    ],
)
def test_size_rate_times_and_boxes(photographs, tmp_path, name, form):
    (tmp_path / "clips").mkdir()
    clip = write(tmp_path / "clips" / name, photographs[: len(form.get("ticks", photographs))], **form)
    index = json.loads(predict_sources(Upper(), [clip.parent], tmp_path / "out").read_text())
    (head, before), (drawn_head, after) = read(clip), read((tmp_path / "out" / name).with_suffix(".mp4"))
    assert drawn_head[:2] == head[:2]
    assert drawn_head[2] == (pytest.approx(head[2], rel=0.05) if "ticks" in form else head[2])  # how long the last one is shown
    assert [seconds for seconds, _ in after] == [seconds for seconds, _ in before]
    lines = (tmp_path / "out" / name).with_suffix(".jsonl")
    assert index == [{"file": str(clip), "frames": len(before), "lines": str(lines)}]
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [(row["frame"], row["time"]) for row in rows] == [(number, seconds) for number, (seconds, _) in enumerate(before)]
    width, height, _ = head
    for row, (_, pixels), (_, drawn) in zip(rows, before, after):
        (found,) = row["detections"]
        assert found["box"] == [0, 0, width / 2, height / 2]
        assert found["score"] == pytest.approx(pixels.mean() / 255, abs=0.02)
        change = np.abs(drawn.astype(int) - pixels).sum(2)
        assert change[height // 2, 4 : width // 2].mean() > 3 * change[height * 3 // 4 :, width * 3 // 4 :].mean()


def test_frames_are_read_one_by_one(photographs, tmp_path, monkeypatch):
    """Each has been answered before the next one is asked for."""
    clip, alive = write(tmp_path / "a.mp4", photographs), []
    frames = video.Video.__iter__

    def watched(self):
        for frame in frames(self):
            alive.append(("read", frame.number))
            yield frame

    monkeypatch.setattr(video.Video, "__iter__", watched)
    nothing = Detections(torch.zeros(0), torch.zeros(0, dtype=torch.long), torch.zeros(0, 4))
    monkeypatch.setattr(Upper, "predict", lambda *_: alive.append("answered") or nothing)
    predict_sources(Upper(), [clip], tmp_path / "out", pictures=False)
    assert alive == [step for number in range(12) for step in (("read", number), "answered")]


def test_a_camera_is_read_until_it_is_interrupted(tmp_path, monkeypatch):
    """FFmpeg's test picture stands for one."""
    monkeypatch.setitem(video.CAMERAS, sys.platform, ("lavfi", "testsrc=size=96x64:rate=10:duration={}"))
    asked = []

    def predict(self, pixels, threshold):
        if len(asked) == 5:
            raise KeyboardInterrupt
        asked.append(pixels.shape)
        return Detections(torch.zeros(0), torch.zeros(0, dtype=torch.long), torch.zeros(0, 4))

    monkeypatch.setattr(Upper, "predict", predict)
    (row,) = json.loads(predict_sources(Upper(), [7], tmp_path).read_text())
    assert (row["file"], row["frames"]) == ("camera:7", 5)
    head, frames = read(tmp_path / "camera-7.mp4")
    assert head == (96, 64, 10)
    assert [seconds for seconds, _ in frames] == [0, 0.1, 0.2, 0.3, 0.4]


def test_a_video_that_breaks_off_is_read_as_far_as_it_goes(photographs, tmp_path, caplog):
    whole = write(tmp_path / "a.mpg", photographs, codec="mpeg1video", rate=Fraction(25))
    content = whole.read_bytes()
    whole.write_bytes(content[: len(content) // 2])
    (row,) = json.loads(predict_sources(Upper(), [whole], tmp_path / "out").read_text())
    assert 0 < row["frames"] < 12


def test_what_is_no_video_is_named(photographs, tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    with pytest.raises(UserError, match=r"bad\.mp4 cannot be opened as a video"):
        predict_sources(Upper(), [tmp_path / "bad.mp4"], tmp_path / "out")
    with pytest.raises(UserError, match=r"camera:63 cannot be opened .*connect it"):
        predict_sources(Upper(), ["63"], tmp_path / "out")
    with pytest.raises(UserError, match=r"a\.mp4 is a video, and the coco format"):
        predict_sources(Upper(), [write(tmp_path / "a.mp4", photographs)], tmp_path / "out", form="coco", annotations=Path("x"))
    assert not list((tmp_path / "out").glob("*"))
