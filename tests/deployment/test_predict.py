"""What prediction on files promises: pictures and numbers in the photograph's own pixels, and no photograph overwritten."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from leandetr.data.transforms import eval_transform
from leandetr.deployment.predict import predict_sources
from leandetr.deployment.pytorch import PyTorchRuntime
from leandetr.deployment.runtime import Runtime
from leandetr.errors import UserError
from leandetr.structures import ClassMap, Detections, Preprocessing


class Fixed(Runtime):
    """A runtime that always finds two objects, one of them hardly."""

    preprocessing, class_map = Preprocessing(size=(32, 32)), ClassMap(("cat", "dog"), (4, 70))
    transform = eval_transform(preprocessing)

    def __init__(self):
        """Of no artefact."""

    def __call__(self, batch):
        (target,) = batch["labels"]
        height, width = target["orig_size"].tolist()
        boxes = torch.tensor([[0.0, 0.0, width / 2, height / 2], [5.0, 5.0, 9.0, 9.0]])
        return [Detections(torch.tensor([0.9, 0.1]), torch.tensor([1, 0]), boxes)]


def test_pictures_and_numbers(photograph, tmp_path):
    path = photograph("a.png", size=(120, 80))
    file = predict_sources(Fixed(), [path], tmp_path / "out", threshold=0.5)
    (row,) = json.loads(file.read_text())
    assert row == {"file": str(path), "detections": [{"class": "dog", "score": 0.9, "box": [0, 0, 60, 40]}]}
    with Image.open(tmp_path / "out" / "a.jpg") as drawn:
        assert drawn.size == (120, 80)
        changed = np.abs(np.asarray(drawn, dtype=int) - np.asarray(Image.open(path).convert("RGB"), dtype=int)).sum(2) > 200
    assert changed[40, 20:58].mean() > changed[60:, 80:].mean() + 0.3  # the box's lower edge is drawn


def test_a_folder_gives_one_entry_an_image(photograph, tmp_path):
    folder = photograph("b.png").parent
    photograph("a.JPG")
    (folder / "notes.txt").write_text("no image")
    file = predict_sources(Fixed(), [folder], tmp_path / "out", pictures=False)
    assert [Path(row["file"]).name for row in json.loads(file.read_text())] == ["a.JPG", "b.png"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["predictions.json"]


def test_results_keep_the_folders_of_what_they_are_of_and_none_overwrites_another(photograph, tmp_path, caplog):
    names = ("a.png", "a.webp", "deep/b.avif", "deep/er/a.png")
    folder, *_ = (photograph(name).parent for name in names)
    (folder / "deep" / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_bytes(b"")
    out = folder / "found"
    for _ in range(2):  # what was drawn is no photograph
        rows = json.loads(predict_sources(Fixed(), [folder, folder / "deep"], out).read_text())
        assert [Path(row["file"]).relative_to(folder).as_posix() for row in rows] == list(names)
    drawn = {path.relative_to(out).as_posix() for path in out.rglob("*.jpg")}
    assert drawn == {"a.jpg", "a.webp.jpg", "deep/er/a.jpg", "deep/b.jpg"}
    assert "left out as no images or videos: 1 (1 .txt)" in caplog.text
    assert "a.webp as " in caplog.text


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [("*.png", ["a"]), ("**/*.png", ["a", "deep/c"]), ("*/*", ["deep/b", "deep/c"]), ("de*", ["deep/b", "deep/c"])],
)
def test_a_pattern_that_no_shell_replaced(photograph, tmp_path, pattern, expected):
    folder, *_ = (photograph(name).parent for name in ("a.png", "deep/b.bmp", "deep/c.png"))
    predict_sources(Fixed(), [f"{folder}/{pattern}"], tmp_path / "out")
    assert sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.jpg")) == [
        f"{name}.jpg" for name in expected
    ]


@pytest.mark.parametrize("suffix", ["gif", "webp", "avif", "tif"])
def test_of_several_frames_the_first_is_read_and_that_is_said(tmp_path, caplog, suffix):
    frames = [Image.new("RGB", (64, 48), colour) for colour in ("red", "blue", "green")]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    predict_sources(Fixed(), [tmp_path / f"a.{suffix}"], tmp_path / "out", threshold=1)
    red, green, blue = Image.open(tmp_path / "out" / "a.jpg").getpixel((60, 40))
    assert red > 200
    assert max(green, blue) < 60
    assert f"1 images have several frames, of which the first is read: {tmp_path}/a.{suffix} has 3" in caplog.text


def test_coco_format_has_the_data_sets_own_ids_and_every_detection(photograph, tmp_path):
    """Whatever ids the model learned its classes by; of a class that the data do not have, there is none."""
    path = photograph("a.png", size=(120, 80))
    categories = [{"id": 7, "name": "dog"}, {"id": 8, "name": "cow"}]
    truth = {"images": [{"id": 31, "file_name": "val/a.png"}], "annotations": [], "categories": categories}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    file = predict_sources(Fixed(), [path], tmp_path / "out", form="coco", annotations=tmp_path / "truth.json")
    found = json.loads(file.read_text())
    assert [(row["image_id"], row["category_id"]) for row in found] == [(31, 7)]
    assert found[0]["bbox"] == [0, 0, 60, 40]


def test_a_real_detector_on_photographs(build, shared, tmp_path):
    photographs = sorted((shared / "data" / "coco_tiny_by" / "val").glob("*.jpg"))[:2]
    runtime = PyTorchRuntime(build("detr"))
    rows = json.loads(predict_sources(runtime, photographs, tmp_path / "out", threshold=0.0).read_text())
    assert [len(row["detections"]) for row in rows] == [12, 12]
    assert {row["class"] for entry in rows for row in entry["detections"]} <= set(runtime.class_map.names)
    assert len(list((tmp_path / "out").glob("*.jpg"))) == 2


def test_boxes_and_ids_are_those_of_the_entry_that_the_path_ends_like(photograph, tmp_path):
    first = photograph("a/x.png", size=(120, 80))
    photograph("b/x.png", size=(120, 80))
    images = [
        {"id": 11, "file_name": "a/x.png", "height": 160, "width": 240},
        {"id": 22, "file_name": "b/x.png", "height": 80, "width": 120},
    ]
    truth = {"images": images, "annotations": [], "categories": [{"id": 7, "name": "dog"}]}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    file = predict_sources(Fixed(), [first], tmp_path / "out", form="coco", annotations=tmp_path / "truth.json")
    (row,) = json.loads(file.read_text())
    assert (row["image_id"], row["bbox"]) == (11, [0, 0, 120, 80])
    truth["images"] = [image | {"file_name": "x.png"} for image in images]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    with pytest.raises(UserError, match="lists 2 images"):
        predict_sources(Fixed(), [first], tmp_path / "again", form="coco", annotations=tmp_path / "truth.json")


def test_a_folders_file_that_is_no_image_is_left_out_with_a_warning(photograph, tmp_path, caplog):
    folder = photograph("a.png").parent
    (folder / "broken.jpg").write_bytes(b"no image")
    file = predict_sources(Fixed(), [folder], tmp_path / "out", pictures=False)
    assert [Path(row["file"]).name for row in json.loads(file.read_text())] == ["a.png"]
    assert "broken.jpg is not an image" in caplog.text


def bad_image(folder, photograph):
    photograph("a.png")
    (folder / "broken.jpg").write_bytes(b"no image")
    return [folder / "broken.jpg"]


def no_images(folder, photograph):
    folder.mkdir()
    return [folder]


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (bad_image, r"broken\.jpg is not an image"),
        (no_images, "holds no images"),
        (lambda folder, photograph: [folder / "missing.jpg"], r"missing\.jpg does not exist"),
    ],
    ids=["bad image", "no images", "missing"],
)
def test_bad_sources_are_named(tmp_path, photograph, sources, message):
    with pytest.raises(UserError, match=message):
        predict_sources(Fixed(), sources(tmp_path / "photographs", photograph), tmp_path / "out")
    assert not (tmp_path / "out" / "predictions.json").exists()


def test_a_photograph_is_never_overwritten(photograph):
    path = photograph("a.jpg")
    before = path.read_bytes()
    with pytest.raises(UserError, match="would overwrite the photograph"):
        predict_sources(Fixed(), [path], path.parent)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("form", "annotations", "message"),
    [
        ("cocoo", None, "did you mean 'coco'"),
        ("coco", None, "--annotations"),
        (
            "coco",
            {"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}]},
            r"does not list the image photo\.png",
        ),
        ("coco", {"pictures": []}, "is not COCO"),
        (
            "coco",
            {"images": [], "annotations": [], "categories": [{"id": 1, "name": "cow"}]},
            "has none of the model's classes",
        ),
    ],
)
def test_bad_formats_are_named(photograph, tmp_path, form, annotations, message):
    file = None
    if annotations is not None:
        file = tmp_path / "truth.json"
        file.write_text(json.dumps(annotations))
    with pytest.raises(UserError, match=message):
        predict_sources(Fixed(), [photograph()], tmp_path / "out", form=form, annotations=file)
