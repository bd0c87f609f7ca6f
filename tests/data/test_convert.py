"""What a conversion promises: the same boxes under the same names, VOC's difficult objects uncounted, the source left alone."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from leandetr.data.check import check
from leandetr.data.coco import CocoDataset, find_split
from leandetr.data.convert import convert
from leandetr.data.transforms import eval_transform
from leandetr.errors import UserError
from leandetr.evaluation.coco import evaluate_results
from leandetr.evaluation.voc import mean_ap, voc_ap
from leandetr.structures import Preprocessing

PLAIN = eval_transform(Preprocessing(size=(64, 64)))
WIDTH, HEIGHT = 80, 40


def picture(path, turn=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if turn:
        exif[0x0112] = turn
    Image.fromarray(np.full((HEIGHT, WIDTH, 3), 90, dtype=np.uint8)).save(path, exif=exif)


def thing(name, *corners, difficult=None):
    sides = "".join(f"<{side}>{value}</{side}>" for side, value in zip(("xmin", "ymin", "xmax", "ymax"), corners))
    flag = "" if difficult is None else f"<difficult>{difficult}</difficult>"
    return f"<object><name>{name}</name>{flag}<bndbox>{sides}</bndbox></object>"


def xml(*things, size=(WIDTH, HEIGHT)):
    return f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>{''.join(things)}</annotation>"


PART = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def voc(tmp_path):
    folder = tmp_path / "VOC2007"
    contents = {
        "a": xml(thing("sheep", 1, 1, WIDTH, HEIGHT), thing("cat", 11, 6, 30.5, 25, difficult=0)),
        "b": xml(
            thing("cat", 11, 11, 20, 20, difficult=1),
            thing("cat", 41, 11, 60, 30, difficult=0),
            thing("cat", 1, 21, 20, 40).replace("</object>", PART + "</object>"),
        ),
        "c": xml(),
    }
    for name, content in contents.items():
        picture(folder / "JPEGImages" / f"{name}.jpg")
        (folder / "Annotations").mkdir(exist_ok=True)
        (folder / "Annotations" / f"{name}.xml").write_text(content)
    lists(folder, train="a\n", val="b\nc\n")
    return folder


def lists(folder, **names):
    main = folder / "ImageSets" / "Main"
    main.mkdir(parents=True, exist_ok=True)
    for name, text in names.items():
        (main / f"{name}.txt").write_text(text)


@pytest.fixture
def yolo(tmp_path):
    return write_yolo(tmp_path / "yolo", "images/train", "images/val")


def write_yolo(folder, train, val):
    for images, stems in ((train, "ab"), (val, "c")):
        labels = folder / images.replace("images", "labels")
        labels.mkdir(parents=True)
        for stem in stems:
            picture(folder / images / f"{stem}.png")
    labels = folder / train.replace("images", "labels")
    (labels / "a.txt").write_text("1 0.5 0.5 1 1\n\n0.0 0.25 0.5 0.25 0.5\n")
    (labels / "classes.txt").write_text("zebra\ncat\n")
    (folder / "data.yaml").write_text("train: /elsewhere/train\nnc: 2\nnames: [zebra, cat]\n")
    return folder


def content(out, split):
    return json.loads((out / "annotations" / f"instances_{split}.json").read_text())


def tree(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def named_boxes(out, split):
    """{file name: [(class, box), ...]} as a `CocoDataset` gives them."""
    dataset = CocoDataset(find_split(out, split), PLAIN)
    truth = dataset.ground_truth()
    names = {category["id"]: category["name"] for category in truth["categories"]}
    found = {image["file_name"]: [] for image in truth["images"]}
    files = {image["id"]: image["file_name"] for image in truth["images"]}
    for entry in truth["annotations"]:
        found[files[entry["image_id"]]].append((names[entry["category_id"]], entry["bbox"]))
    assert len(dataset[0][1]["boxes"]) == sum(not entry["iscrowd"] for entry in truth["annotations"] if entry["image_id"] == 1)
    return found


def test_voc_becomes_coco_with_boxes_measured_from_zero(voc, tmp_path):
    before = tree(voc)
    out = convert(voc, tmp_path / "out")
    assert named_boxes(out, "train") == {"a.jpg": [("sheep", [0, 0, WIDTH, HEIGHT]), ("cat", [10, 5, 20.5, 20])]}
    assert named_boxes(out, "val") == {
        "b.jpg": [("cat", [10, 10, 10, 10]), ("cat", [40, 10, 20, 20]), ("cat", [0, 20, 20, 20])],
        "c.jpg": [],
    }
    assert [content(out, split)["categories"] for split in ("train", "val")] == [
        [{"id": 1, "name": "cat"}, {"id": 2, "name": "sheep"}]
    ] * 2
    assert [(entry["difficult"], entry["iscrowd"]) for entry in content(out, "val")["annotations"]] == [(1, 1), (0, 0), (0, 0)]
    assert [check(find_split(out, split)) for split in ("train", "val")] == [[], []]
    assert tree(voc) == before


def test_difficult_objects_count_neither_as_found_nor_as_missed(voc, tmp_path):
    truth = CocoDataset(find_split(convert(voc, tmp_path / "out"), "val"), PLAIN).ground_truth()
    boxes = [([10, 10, 10, 10], 0.9), ([41, 10, 20, 20], 0.8), ([60, 0, 10, 10], 0.7)]  # the difficult one, a hit, a miss
    results = [{"image_id": 1, "category_id": 1, "bbox": box, "score": score} for box, score in boxes]
    # One of the two other objects is found, at precision 1; had the difficult one counted, two of three would be.
    assert voc_ap(truth, results) == {"cat": 0.5, "sheep": -1.0}
    assert mean_ap(voc_ap(truth, results)) == 0.5
    assert mean_ap(voc_ap(truth, results[1:])) == 0.5
    # COCO's AP has precision 1 at 51 of its 101 recalls 0, 0.01, ... 1.
    assert evaluate_results(truth, results).ap50 == pytest.approx(51 / 101)
    assert evaluate_results(truth, results[1:]).ap50 == pytest.approx(51 / 101)


@pytest.mark.parametrize(
    ("given", "train", "val"),
    [
        ({"train": "a", "val": "b", "trainval": "a\nb", "test": "c"}, ["a.jpg"], ["b.jpg"]),
        ({"val": "b", "trainval": "b\na\nb\n", "test": "c"}, ["b.jpg", "a.jpg"], ["c.jpg"]),
        ({"train": "a\n\n", "test": " c "}, ["a.jpg"], ["c.jpg"]),
    ],
)
def test_voc_lists_are_the_splits(voc, tmp_path, given, train, val):
    for file in (voc / "ImageSets" / "Main").iterdir():
        file.unlink()
    lists(voc, **given)
    out = convert(voc, tmp_path / "out")
    assert [[image["file_name"] for image in content(out, split)["images"]] for split in ("train", "val")] == [train, val]
    assert sorted(path.name for path in (out / "val").iterdir()) == sorted(val)


@pytest.mark.parametrize(
    ("size", "turn", "frame"),
    [
        ((WIDTH, HEIGHT), None, (WIDTH, HEIGHT)),
        ((0, 0), None, (WIDTH, HEIGHT)),
        ((2 * WIDTH, 2 * HEIGHT), None, (2 * WIDTH, 2 * HEIGHT)),  # the image was scaled after it was annotated
        ((0, 0), 6, (HEIGHT, WIDTH)),
        ((WIDTH, HEIGHT), 6, (WIDTH, HEIGHT)),  # annotated as stored
    ],
)
def test_voc_boxes_lie_in_the_frame_of_their_xml(voc, tmp_path, size, turn, frame):
    picture(voc / "JPEGImages" / "a.jpg", turn)
    (voc / "Annotations" / "a.xml").write_text(xml(thing("cat", 1, 1, 10, 10), size=size))
    out = convert(voc, tmp_path / "out")
    assert [(image["width"], image["height"]) for image in content(out, "train")["images"]] == [frame]
    assert CocoDataset(find_split(out, "train"), PLAIN).load_image(0).size == frame


@pytest.mark.parametrize("folders", [("images/train", "images/val"), ("train/images", "valid/images")])
@pytest.mark.parametrize("names", ["[zebra, cat]", "{1: cat, 0: zebra}"])
def test_yolo_becomes_coco_with_boxes_in_pixels(tmp_path, folders, names):
    folder = write_yolo(tmp_path / "yolo", *folders)
    (folder / "data.yaml").write_text(f"names: {names}\n")
    before = tree(folder)
    out = convert(folder, tmp_path / "out")
    assert named_boxes(out, "train") == {
        "a.png": [("cat", [0, 0, WIDTH, HEIGHT]), ("zebra", [0.125 * WIDTH, 0.25 * HEIGHT, 0.25 * WIDTH, 0.5 * HEIGHT])],
        "b.png": [],
    }
    assert named_boxes(out, "val") == {"c.png": []}
    assert content(out, "val")["categories"] == [{"id": 1, "name": "zebra"}, {"id": 2, "name": "cat"}]
    assert "difficult" not in content(out, "train")["annotations"][0]
    assert tree(folder) == before


def test_yolo_boxes_are_relative_to_the_upright_image_and_subfolders_are_kept(yolo, tmp_path):
    picture(yolo / "images" / "val" / "night" / "d.jpg", turn=6)
    (yolo / "labels" / "val" / "night").mkdir()
    (yolo / "labels" / "val" / "night" / "d.txt").write_text("0 0.5 0.25 1 0.5")
    out = convert(yolo, tmp_path / "out")
    assert named_boxes(out, "val") == {"c.png": [], "night/d.jpg": [("zebra", [0, 0, HEIGHT, 0.5 * WIDTH])]}
    assert CocoDataset(find_split(out, "val"), PLAIN).load_image(1).size == (HEIGHT, WIDTH)


def test_images_are_linked_where_that_works_and_copied_elsewhere(yolo, tmp_path, monkeypatch):
    source, target = yolo / "images" / "val" / "c.png", Path("val/c.png")
    assert (convert(yolo, tmp_path / "linked") / target).samefile(source)

    def other_file_system(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", other_file_system)
    copied = convert(yolo, tmp_path / "copied") / target
    assert copied.read_bytes() == source.read_bytes()
    assert not copied.samefile(source)


def test_a_conversion_may_be_repeated_but_replaces_nothing_else(yolo, voc, tmp_path):
    out = convert(yolo, tmp_path / "out")
    (yolo / "images" / "train" / "b.png").unlink()
    convert(yolo, out)
    assert [path.name for path in (out / "train").iterdir()] == ["a.png"]
    with pytest.raises(UserError, match="out holds the result of other settings"):
        convert(voc, out)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"out holds notes\.txt"):
        convert(yolo, out)
    with pytest.raises(UserError, match="yolo exists and is not an output of leandetr"):
        convert(yolo, yolo)
    assert (out / "notes.txt").read_text() == "mine"


def test_a_failure_leaves_nothing_behind(yolo, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.link", full)
    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(UserError, match=r"cannot write .*out: No space left"):
        convert(yolo, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["yolo"]


def test_folders_are_data_as_they_are(yolo, voc, tmp_path, monkeypatch):
    """With the boxes of their conversion, read again when they change, and nothing written into them."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    for folder, images in ((voc, "JPEGImages"), (yolo, "images/val")):
        before = tree(folder)
        for split in ("train", "val"):
            converted = named_boxes(convert(folder, tmp_path / f"{folder.name}-coco"), split)
            found = named_boxes(folder, split)
            assert {Path(name).name: boxes for name, boxes in found.items()} == converted
        assert all(name.startswith(images) for name in found)
        assert check(find_split(folder, "val")) == []
        assert tree(folder) == before
    assert len(list(cache.glob("leandetr/data/*/instances_*.json"))) == 4
    (yolo / "labels" / "val" / "c.txt").write_text("0 0.5 0.5 1 1\n")
    assert named_boxes(yolo, "val") == {"images/val/c.png": [("zebra", [0, 0, WIDTH, HEIGHT])]}
    (yolo / "labels" / "val" / "c.txt").write_text("7 0.5 0.5 1 1\n")
    for split in ("train", "val"):
        with pytest.raises(UserError, match=r"c\.txt, line 1: class 7 is not one of data\.yaml's names"):
            CocoDataset(find_split(yolo, split), PLAIN)


@pytest.mark.parametrize(
    ("path", "train", "val", "found"),
    [
        ("", "images/night", "images/day", True),
        ("path: ../elsewhere\n", "images/night", "./images/day", True),
        ("path: /nowhere\n", "images/night/", "images/day", True),
        ("", "../images/night", "/nowhere/images", False),
    ],
)
def test_a_yolo_yaml_says_where_its_images_are(yolo, tmp_path, monkeypatch, path, train, val, found):
    """As Ultralytics reads it; where it names what is not there, the usual folders are taken."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "elsewhere" if ".." in path else yolo
    write_yolo(root, "images/night", "images/day")
    file = yolo / "own.yml"
    file.write_text(f"{path}train: {train}\nval: {val}\nnames: [zebra, cat]\n")
    (root / "labels" / "day" / "c.txt").write_text("1 0.5 0.5 1 1\n")
    expected = {"c.png": [("cat", [0, 0, WIDTH, HEIGHT])] if found else []}
    assert {Path(name).name: boxes for name, boxes in named_boxes(file, "val").items()} == expected
    assert named_boxes(convert(file, tmp_path / "out"), "val") == expected
    assert check(find_split(file, "train")) == []
    if found:
        (root / "labels" / "day" / "c.txt").write_text("0 0.5 0.5 1 1\n")
        assert list(named_boxes(file, "val").values()) == [[("zebra", [0, 0, WIDTH, HEIGHT])]]


def test_a_yolo_folder_without_its_yaml_says_so(yolo):
    (yolo / "data.yaml").unlink()
    with pytest.raises(UserError, match=r"yolo is laid out like a YOLO folder but has no data\.yaml; write one"):
        find_split(yolo, "train")


def test_layouts_are_recognised_or_named(yolo, voc, tmp_path):
    with pytest.raises(UserError, match=r"is not a Pascal VOC folder .* or a YOLO folder .*did you mean .*VOC2007\?"):
        convert(tmp_path, tmp_path / "out")
    with pytest.raises(UserError, match="unknown format 'yolov8': did you mean 'yolo'"):
        convert(yolo, tmp_path / "out", "yolov8")
    with pytest.raises(UserError, match=r"yolo is not a Pascal VOC folder \(Annotations/ and JPEGImages/\); name the folder"):
        convert(yolo, tmp_path / "out", "voc")
    with pytest.raises(UserError, match="nowhere does not exist"):
        convert(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(UserError, match=r"a\.txt is a file; name the folder"):
        convert(yolo / LABEL, tmp_path / "out")
    with pytest.raises(UserError, match=r"data\.yaml is a file; name a Pascal VOC folder"):
        convert(yolo / "data.yaml", tmp_path / "out", "voc")
    (yolo / "Annotations").mkdir()
    (yolo / "JPEGImages").mkdir()
    with pytest.raises(UserError, match="has the files of voc and yolo; choose one with `leandetr data convert --format`"):
        convert(yolo, tmp_path / "out")
    assert convert(yolo, tmp_path / "out", "yolo").is_dir()


BOMB = '<!DOCTYPE a [<!ENTITY b "bbbb">]><annotation><object><name>&b;</name></object></annotation>'


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("ImageSets/Main/val.txt", None, r"Main has neither train\.txt and val\.txt nor trainval\.txt and test\.txt"),
        ("ImageSets/Main/val.txt", "\n", r"val\.txt lists no images"),
        ("ImageSets/Main/val.txt", "../a", r"val\.txt lists 1 names without an image in .*JPEGImages, the first is \.\./a; "),
        ("JPEGImages/a.jpg", None, r"train\.txt lists 1 names without an image"),
        ("Annotations/a.xml", "<annotation>", r"Annotations has no image of train that can be read with its boxes; "),
    ],
)
def test_what_is_wrong_with_voc_is_said_in_one_sentence(voc, tmp_path, file, text, message):
    refused(voc, file, text, message, tmp_path / "out")


LABEL = "labels/train/a.txt"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("data.yaml", "names: [", r"data\.yaml is not YAML"),
        ("data.yaml", "nc: 2", r"data\.yaml has no 'names'"),
        ("data.yaml", "names: []", r"data\.yaml has no 'names'"),
        ("data.yaml", "names: {cat: 0}", r"data\.yaml: 'names' has the class number 'cat'"),
        ("data.yaml", "names: [yes, no]", r"data\.yaml: the name of class 0 is read as True; write a text, in quotes"),
        ("data.yaml", "names: [cat, cat]", r"data\.yaml gives the name 'cat' to two classes"),
        ("data.yaml", b"names: [\xff]", r"data\.yaml is not UTF-8 text"),
        ("images/val/c.png", None, r"images/val has no images; put those of the val split there"),
        (LABEL, "2 0.5 0.5 1 1", r"a\.txt, line 1: class 2 is not one of data\.yaml's names \(0 to 1\)"),
        (LABEL, "-1 0.5 0.5 1 1", r"a\.txt, line 1: class -1 is not one"),
        (LABEL, "0.5 0.5 0.5 1 1", r"a\.txt, line 1: class 0\.5 is not one"),
    ],
)
def test_what_is_wrong_with_yolo_is_said_in_one_sentence(yolo, tmp_path, file, text, message):
    refused(yolo, file, text, message, tmp_path / "out")


BROKEN = "<annotation><object>"


@pytest.mark.parametrize(
    ("file", "text", "kind", "example"),
    [
        ("JPEGImages/a.jpg", "text", "unreadable image", "JPEGImages/a.jpg"),
        ("Annotations/a.xml", None, "missing XML file", "a.xml: No such file"),
        ("Annotations/a.xml", BROKEN, "unreadable XML file", "a.xml: no element found"),
        ("Annotations/a.xml", "", "unreadable XML file", "a.xml: no element found"),
        ("Annotations/a.xml", '<?xml version="1.0" encoding="klingon"?><a/>', "unreadable XML file", "a.xml: unknown encoding"),
        ("Annotations/a.xml", BOMB, "unreadable XML file", "a.xml: it declares a document type"),
        ("Annotations/a.xml", BOMB.encode("utf-16"), "unreadable XML file", "a.xml: it declares a document type"),
        ("Annotations/a.xml", xml(size=(HEIGHT, WIDTH)), "size differs from the file", "a.xml: 40 x 80, but a.jpg is 80 x 40"),
        ("Annotations/a.xml", xml(size=("wide", HEIGHT)), "size is not whole numbers", "a.xml: 'wide' x '40'"),
        ("Annotations/a.xml", xml(thing(" ", 1, 1, 9, 9)), "object without a name", "a.xml"),
        ("images/train/a.png", "text", "unreadable image", "images/train/a.png"),
        (LABEL, b"\xff\xfe0\0 \0", "unreadable label file", "a.txt is not UTF-8 text"),
        (LABEL, "cat 1 2 3 4\n", "unreadable label file", "a.txt, line 1: cat 1 2 3 4"),
    ],
)
def test_an_image_whose_boxes_are_not_known_is_left_out_and_is_no_background(voc, yolo, caplog, file, text, kind, example):
    source = voc if file.startswith(("JPEG", "Anno")) else yolo
    if source == voc:  # a second training image, which stays
        picture(voc / "JPEGImages" / "d.jpg")
        (voc / "Annotations" / "d.xml").write_text(xml(GOOD))
        lists(voc, train="a\nd\n")
    spoil(source, file, text)
    kept = {"d.jpg": [("cat", [0, 0, 20, 20])]} if source == voc else {"b.png": []}
    assert {Path(name).name: boxes for name, boxes in named_boxes(source, "train").items()} == kept
    assert f"1 images are left out with their boxes: {kind} (1, as " in caplog.text
    (fault,) = check(find_split(source, "train"))
    assert (fault.kind, fault.count, fault.image) == (kind, 1, True)
    assert example in fault.examples[0]
    assert named_boxes(convert(source, source.parent / "out"), "train") == kept


def test_every_broken_file_is_listed(voc, yolo):
    for number in range(5):
        picture(voc / "JPEGImages" / f"e{number}.jpg")
        (voc / "Annotations" / f"e{number}.xml").write_text(BROKEN)
        (yolo / "labels" / "train" / f"b{number}.txt").write_text("0 0.5 0.5 1 1\n7 0.5 0.5 1 1\n")
        picture(yolo / "images" / "train" / f"b{number}.png")
    lists(voc, train="a\n" + "".join(f"e{number}\n" for number in range(5)))
    (yolo / "labels" / "val" / "c.txt").write_text("9 0.5 0.5 1 1\n")
    assert [(fault.kind, fault.count, len(fault.examples)) for fault in check(find_split(voc, "train"))] == [
        ("unreadable XML file", 5, 3)
    ]
    faults = {split: check(find_split(yolo, split)) for split in ("train", "val")}
    assert [(fault.kind, fault.count) for fault in faults["train"]] == [("class number without a name", 5)]
    assert [(fault.kind, fault.count) for fault in faults["val"]] == [("class number without a name", 1)]
    with pytest.raises(UserError, match=r"b0\.txt, line 2: class 7 is not one of .*nor is that of 5 more lines; correct"):
        CocoDataset(find_split(yolo, "val"), PLAIN)


GOOD = thing("cat", 1, 1, 20, 20)


@pytest.mark.parametrize(
    ("file", "text", "kind", "example"),
    [
        ("Annotations/a.xml", xml(GOOD, thing("cat", 1, 1, 9)), "box is not four finite numbers", "1, 1, 9, none"),
        ("Annotations/a.xml", xml(thing("cat", 1, 1, "nan", 9), GOOD), "box is not four finite numbers", "1, 1, nan, 9"),
        ("Annotations/a.xml", xml(GOOD, thing("cat", 9, 1, 5, 9)), "empty box", "'cat', xmin, ymin, xmax, ymax: 9, 1, 5, 9"),
        ("Annotations/a.xml", xml(GOOD, thing("cat", 9, 1, 8, 9)), "empty box", "9, 1, 8, 9"),
        (LABEL, "0 0.5 0.5 1 1\n0 0.5 0.5 1\n", "line is neither a box nor a polygon", "line 2: 0 0.5 0.5 1"),
        (LABEL, "0 0.5 0.5 1 1\n1 0.5 0.5 1 1 1 1 1", "line is neither a box nor a polygon", "line 2"),
        (LABEL, "cat 0.5 0.5 1 1\n0 0.5 0.5 1 1", "line is not numbers", "line 1: cat"),
        (LABEL, "0 0.5 0.5 1 1\n0 40 20 10 10", "box is not in parts of the image", "line 2: 0 40 20 10 10"),
        (LABEL, "0 0.5 0.5 0 1\n0 0.5 0.5 1 1", "empty box", "line 1: 0 0.5 0.5 0 1"),
        (LABEL, "0 0.5 0.5 1 1\n0 0.5 0.5 1 -1", "empty box", "line 2"),
        (LABEL, "0 nan 0.5 1 1\n0 0.5 0.5 1 1", "box is not in parts of the image", "line 1"),
        ("labels/train/stray.txt", "0 0.5 0.5 1 1", "label file without an image", "stray.txt"),
    ],
)
def test_a_faulty_entry_is_listed_and_the_rest_is_read(voc, yolo, caplog, file, text, kind, example):
    """As in COCO's format: skipped, counted when the set is read, named by `data check`."""
    source = voc if file.endswith("xml") else yolo
    boxes = len(CocoDataset(find_split(source, "train"), PLAIN).ground_truth()["annotations"])
    (source / file).write_text(text)
    dataset = CocoDataset(find_split(source, "train"), PLAIN)
    assert dataset.skipped == 1
    assert "1 faulty boxes are skipped" in caplog.text
    assert len(dataset.ground_truth()["annotations"]) == (boxes if "stray" in file else 1)
    (fault,) = check(find_split(source, "train"))
    assert (fault.kind, fault.count) == (kind, 1)
    assert file in fault.examples[0]
    assert example in fault.examples[0]


@pytest.mark.parametrize("hidden", ["._a.png", "._a.txt", ".DS_Store"])
def test_an_operating_systems_own_files_are_no_data(yolo, voc, hidden):
    for source, folders in ((yolo, ("images/train", "labels/train")), (voc, ("JPEGImages", "Annotations"))):
        for folder in folders:
            (source / folder / hidden).write_bytes(b"\0\5\x16\7")
        assert check(find_split(source, "train")) == []


def test_a_yolo_split_without_a_folder_of_labels_is_refused(yolo, tmp_path):
    (yolo / "labels" / "val").rmdir()
    with pytest.raises(UserError, match=r"labels/val does not exist; put the label files of .*images/val there"):
        convert(yolo, tmp_path / "out")


def refused(source, file, text, message, out):
    """With the file replaced by a text, or removed, nothing is written and the message is one line."""
    spoil(source, file, text)
    with pytest.raises(UserError, match=message) as caught:
        convert(source, out)
    assert "\n" not in str(caught.value)
    assert not out.exists()


def spoil(source, file, text):
    if text is None:
        (source / file).unlink()
    else:
        (source / file).write_bytes(text if isinstance(text, bytes) else text.encode())
