"""Hugging Face's forms of a detection set, written here as `datasets` 5.2 writes them: the same boxes, whatever the form."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from leandetr.data.check import check, notes
from leandetr.data.coco import CocoDataset
from leandetr.data.convert import convert
from leandetr.data.splits import DataFolder, find_split
from leandetr.data.transforms import eval_transform
from leandetr.errors import UserError
from leandetr.structures import Preprocessing

pyarrow = pytest.importorskip("pyarrow")
from pyarrow import ipc, parquet  # noqa: E402  # there only with the extra

PLAIN = eval_transform(Preprocessing(size=(64, 64)))
WIDTH, HEIGHT = 80, 40
NAMES = ["zebra", "cat"]
#: image -> its boxes, x, y, width, height, with class numbers
TRUTH = {
    "a": [([8.0, 4.0, 40.0, 20.0], 1)],
    "b": [([0.0, 0.0, 16.0, 8.0], 0), ([40.0, 20.0, 20.0, 10.0], 1)],
    "c": [([16.0, 8.0, 8.0, 8.0], 0)],
    "d": [],
}
SPLITS = {"train": "ab", "validation": "cd"}
CLASS = {"names": NAMES, "_type": "ClassLabel"}
OLD = {"objects": {"feature": {"bbox": {}, "category": CLASS}, "_type": "Sequence"}}
NEW = {"objects": {"bbox": {}, "category": {"feature": CLASS, "_type": "List"}}}
CARD = """---
dataset_info:
  features:
  - name: objects
    sequence:
    - name: category
      dtype:
        class_label:
          names:
            '0': zebra
            '1': cat
---
# Animals
"""


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def photograph(seed, form="PNG"):
    pixels = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def objects(things, **more):
    """As a dictionary of lists."""
    return {"bbox": [box for box, _ in things], "category": [number for _, number in things]} | more


def row(stem, held=objects):
    return {"image": {"bytes": photograph(ord(stem)), "path": f"{stem}.png"}, "objects": held(TRUTH[stem])}


def listed(things):
    """As a list of dictionaries."""
    return [{"bbox": box, "category": number} for box, number in things]


def table(rows, features=None):
    made = pyarrow.Table.from_pylist(rows)
    described = {} if features is None else {"huggingface": json.dumps({"info": {"features": features}})}
    return made.replace_schema_metadata(described)


def write(folder, pattern="data/{}-00000-of-00001.parquet", features=OLD, make=row):
    for split, stems in SPLITS.items():
        file = folder / pattern.format(split)
        file.parent.mkdir(parents=True, exist_ok=True)
        rows = table([make(stem) for stem in stems], features)
        if file.suffix == ".parquet":
            parquet.write_table(rows, file)
        else:
            with ipc.new_stream(file, rows.schema) as stream:
                stream.write_table(rows)
    return folder


def in_two(folder):
    for number, stem in enumerate("ab"):
        (folder / "data").mkdir(parents=True, exist_ok=True)
        parquet.write_table(table([row(stem)], OLD), folder / "data" / f"train-0000{number}-of-00002.parquet")
    parquet.write_table(table([row("c"), row("d")], OLD), folder / "data" / "validation-00000-of-00001.parquet")
    return folder


def with_card(folder):
    write(folder, features=None)
    (folder / "README.md").write_text(CARD)
    return folder


def with_infos(folder):
    write(folder, features=None)
    (folder / "dataset_infos.json").write_text(json.dumps({"default": {"features": OLD}}))
    return folder


def words(stem):
    named = [(box, NAMES[number]) for box, number in TRUTH[stem]]
    return row(stem) | {"objects": objects(named)}


def flat(stem):
    return {"image": row(stem)["image"], "bboxes": [box for box, _ in TRUTH[stem]], "labels": [n for _, n in TRUTH[stem]]}


def lines(folder):
    for split, stems in SPLITS.items():
        (folder / split).mkdir(parents=True)
        for stem in stems:
            (folder / split / f"{stem}.png").write_bytes(photograph(ord(stem)))
        rows = [{"file_name": f"{stem}.png", "objects": words(stem)["objects"]} for stem in stems]
        (folder / split / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


LAYOUTS = {
    "Parquet": write,
    "Parquet in two shards": in_two,
    "Parquet in the folder": lambda folder: write(folder, "{}-00000-of-00001.parquet"),
    "the hub's own conversion": lambda folder: write(folder, "default/{}/0000.parquet"),
    "lists of dictionaries": lambda folder: write(folder, features=NEW, make=lambda stem: row(stem, listed)),
    "boxes as columns": lambda folder: write(folder, features={"labels": {"feature": CLASS}}, make=flat),
    "classes as text": lambda folder: write(folder, features=None, make=words),
    "names in the card": with_card,
    "names in dataset_infos.json": with_infos,
    "save_to_disk": lambda folder: write(folder, "{}/data-00000-of-00001.arrow"),
    "metadata.jsonl": lines,
}


def found_in(split):
    """Image by image in the order of the rows: [(class, box), ...], as a `CocoDataset` gives them."""
    truth = CocoDataset(split, PLAIN).ground_truth()
    names = {category["id"]: category["name"] for category in truth["categories"]}
    assert set(names.values()) == set(NAMES)
    return [
        [(entry["bbox"], names[entry["category_id"]]) for entry in truth["annotations"] if entry["image_id"] == image["id"]]
        for image in truth["images"]
    ]


def expected(stems):
    return [[(box, NAMES[number]) for box, number in TRUTH[stem]] for stem in stems]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_form_is_read_without_a_flag(tmp_path, layout):
    data = LAYOUTS[layout](tmp_path / "data")
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    assert DataFolder(data).splits == ("train", "val")
    for split, stems in (("train", "ab"), ("val", "cd")):
        found = find_split(data, split)
        assert found_in(found) == expected(stems)
        assert check(found) == []
        pixels = [np.asarray(CocoDataset(found, PLAIN).load_image(index)) for index in range(2)]
        assert all(np.array_equal(a, Image.open(io.BytesIO(photograph(ord(stem))))) for a, stem in zip(pixels, stems))
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*")} == before


def test_a_set_without_splits_crowds_and_areas(tmp_path):
    held = objects([([0, 0, 10, 10], 0), ([10, 10, 10, 10], 1)], iscrowd=[True, False], area=[50.0, None])
    tmp_path.joinpath("data").mkdir()
    parquet.write_table(table([row("a") | {"objects": held}], OLD), tmp_path / "data" / "all.parquet")
    truth = CocoDataset(find_split(tmp_path / "data", "all"), PLAIN).ground_truth()
    assert [(entry["iscrowd"], entry["area"]) for entry in truth["annotations"]] == [(1, 50), (0, 100)]
    converted = convert(tmp_path / "data", tmp_path / "out")
    assert CocoDataset(find_split(converted, "train"), PLAIN).ground_truth()["annotations"] == truth["annotations"]


def spread(count, change):
    """Boxes that are random but for the change."""
    generator = np.random.default_rng(0)
    low = generator.uniform(0, (WIDTH - 8, HEIGHT - 8), (count, 2))
    high = low + generator.uniform(4, np.minimum((WIDTH, HEIGHT) - low, 30))
    return change(low, high).round(3).tolist()


def test_corners_are_told_from_widths_and_heights(tmp_path, caplog):
    sides = spread(20, lambda low, high: np.hstack([low, high - low]))
    for name, boxes in (("sides", sides), ("corners", spread(20, lambda low, high: np.hstack([low, high])))):
        data = tmp_path / name
        data.mkdir()
        held = objects([(box, number % 2) for number, box in enumerate(boxes)])
        parquet.write_table(table([row("a") | {"objects": held}], OLD), data / "train.parquet")
        (found,) = found_in(find_split(data, "train"))
        assert np.array([box for box, _ in found]) == pytest.approx(np.array(sides), abs=0.002)
        said = notes(find_split(data, "train"))
        assert [text.partition(" boxes")[2].partition(":")[0] for text in said] == (
            [" leave their images as x, y, width, height, and all fit as corners (left, upper, right, lower)"]
            if name == "corners"
            else []
        )
        assert ("they are read as corners" in caplog.text) == (name == "corners")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"features": None}, "has its classes as numbers and says their names nowhere; write them as a ClassLabel"),
        (
            {"boxes": [([30.0, 20.0, 60.0, 35.0], 0)]},
            "1 of 1 boxes leave their images as x, y, .* and all fit as corners; correct",
        ),
        ({"boxes": [([0.0, 0.0, 9.0, 9.0], 2)]}, "row 0: class 2 is none of zebra, cat; correct the numbers"),
        ({"boxes": []}, "has no box in any image; name a folder with labelled images"),
        ({"image": b"no image"}, "has no image of train that can be read with its boxes; `leandetr data check` lists why"),
    ],
)
def test_what_is_not_to_be_trusted_is_refused(tmp_path, change, sentence):
    held = objects(change.get("boxes", TRUTH["a"]))
    rows = [{"image": {"bytes": change.get("image", photograph(1)), "path": "a.png"}, "objects": held}]
    typed = pyarrow.Table.from_pylist(rows, schema=table([row("a")]).schema)
    features = change.get("features", OLD)
    described = {} if features is None else {"huggingface": json.dumps({"info": {"features": features}})}
    parquet.write_table(typed.replace_schema_metadata(described), tmp_path / "train.parquet")
    split = find_split(tmp_path, "train")
    with pytest.raises(UserError, match=sentence) as caught:
        CocoDataset(split, PLAIN)
    assert "\n" not in str(caught.value)
    check(split)


def test_broken_rows_are_left_out_and_listed(tmp_path):
    lost = [{"image": {"bytes": None, "path": name}, "objects": objects(TRUTH["a"])} for name in ("../x.png", "gone.png")]
    text = [{"image": {"bytes": b"text", "path": "t.png"}, "objects": objects(TRUTH["a"])}]
    (tmp_path / "data").mkdir()
    (tmp_path / "x.png").write_bytes(photograph(1))  # there, but outside of the data set
    parquet.write_table(table([row("a"), row("b"), *lost, *text], OLD), tmp_path / "data" / "train.parquet")
    split = find_split(tmp_path / "data", "train")
    assert found_in(split) == expected("ab")
    assert [(fault.kind, fault.count, fault.image) for fault in check(split)] == [
        ("missing image", 2, True),
        ("unreadable image", 1, True),
    ]


def test_two_configurations_are_refused_and_other_tables_are_no_data(tmp_path):
    for name in ("easy", "hard"):
        write(tmp_path / "two" / name, "{}-00000-of-00001.parquet")
    with pytest.raises(UserError, match=r"two has the tables of several configurations \(easy, hard\); name one"):
        find_split(tmp_path / "two", "train")
    assert found_in(find_split(tmp_path / "two" / "hard", "train")) == expected("ab")
    (tmp_path / "text").mkdir()
    parquet.write_table(pyarrow.table({"text": ["a"], "label": [1]}), tmp_path / "text" / "train.parquet")
    with pytest.raises(UserError, match=r"text has no annotations/instances_train\.json"):
        find_split(tmp_path / "text", "train")
    (tmp_path / "text" / "train.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"train\.parquet cannot be read \(.*\); fetch it again"):
        find_split(tmp_path / "text", "train")


def test_the_hub_is_asked_where_it_is_named(tmp_path, monkeypatch):
    asked = []

    def snapshot_download(name, repo_type, revision):
        asked.append((name, repo_type, revision))
        if name == "no/such":
            raise OSError("404\nnot found")
        return str(write(tmp_path / "snapshot"))

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    for _ in range(2):
        assert found_in(find_split("hf://some/animals@v1.0", "train")) == expected("ab")
    assert asked == [("some/animals", "dataset", "v1.0")]
    with pytest.raises(UserError, match=r"cannot fetch hf://no/such \(404 not found\); check the name and the connection"):
        find_split("hf://no/such", "train")
    with pytest.raises(UserError, match="names no data set of the hub; write hf://OWNER/NAME"):
        find_split("hf://a/b/c", "train")
    assert len(asked) == 2
