"""Folders as tools write them are read without a flag: each layout by a small writer, the same boxes in the same splits."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from leandetr.data.annotations import Split, class_map_of
from leandetr.data.check import check, notes
from leandetr.data.coco import CocoDataset
from leandetr.data.duplicates import near_duplicates
from leandetr.data.partition import Partition
from leandetr.data.splits import DataFolder, find_split, split_state
from leandetr.data.transforms import eval_transform
from leandetr.errors import UserError
from leandetr.inputs import changed
from leandetr.structures import Preprocessing

PLAIN = eval_transform(Preprocessing(size=(64, 64)))
WIDTH, HEIGHT = 80, 40
CLASSES = ("zebra", "cat")
BOXES = {
    "a": [("cat", [8, 4, 40, 20])],
    "b": [("zebra", [0, 0, 16, 8]), ("cat", [40, 20, 20, 10])],
    "c": [("zebra", [16, 8, 8, 8])],
}
SPLITS = {"train": "ab", "val": "c"}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(ord(path.stem[-1])).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def text(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def coco(stems, prefix="", categories=((1, "zebra"), (2, "cat")), **size):
    numbers = {name: number for number, name in categories}
    size = size or {"width": WIDTH, "height": HEIGHT}
    images = [{"id": ord(stem), "file_name": f"{prefix}{stem}.png"} | size for stem in stems]
    annotations = [
        {"id": 10 * ord(stem) + n, "image_id": ord(stem), "category_id": numbers[name], "bbox": box, "iscrowd": 0}
        for stem in stems
        for n, (name, box) in enumerate(BOXES[stem])
    ]
    listed = [{"id": number, "name": name, "supercategory": "none"} for number, name in categories]
    return {"images": images, "annotations": annotations, "categories": listed}


def coco_layout(json_at, images_at, prefix="", names=(("train", "train"), ("val", "val")), mark=""):
    """A writer of a JSON a split. json_at, images_at: with {} for the split's name."""

    def write(root, stems_of=SPLITS):
        for split, name in names:
            for stem in stems_of[split]:
                picture(root / images_at.format(name) / f"{stem}.png")
            text(root / json_at.format(name), mark + json.dumps(coco(stems_of[split], prefix.format(name))))
        return root

    return write


def roboflow_coco(root):
    for name, stems in (("train", "ab"), ("valid", "c"), ("test", "c")):
        content = coco(stems, categories=((1, "cat"), (2, "zebra")))
        content["categories"] = [
            {"id": 0, "name": "animals", "supercategory": "none"},
            {"id": 1, "name": "cat", "supercategory": "animals"},
            {"id": 2, "name": "zebra", "supercategory": "animals"},
        ]
        for stem in stems:
            picture(root / name / f"{stem}.png")
        text(root / name / "_annotations.coco.json", json.dumps(content))
    return root


def xml(stem):
    things = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax>"
        "</bndbox></object>"
        for name, (x, y, w, h) in BOXES[stem]
    )
    return f"<annotation><size><width>{WIDTH}</width><height>{HEIGHT}</height></size>{things}</annotation>"


def voc_layout(images_at, xml_at, names=(("train", "train"), ("val", "val"))):
    def write(root, stems_of=SPLITS):
        for split, name in names:
            for stem in stems_of[split]:
                picture(root / images_at.format(name) / f"{stem}.png")
                text(root / xml_at.format(name) / f"{stem}.xml", xml(stem))
        return root

    return write


def voc_with_lists(root):
    for split, stems in SPLITS.items():
        for stem in stems:
            picture(root / "JPEGImages" / f"{stem}.png")
            text(root / "annotations" / f"{stem}.xml", xml(stem))
        text(root / "ImageSets" / "Main" / f"{split}.txt", "\n".join(stems))
    return root


def csv_layout(csv_at, images_at, titles, names=(("train", "train"), ("val", "val"))):
    """titles: whether the file begins with TensorFlow's; without, an image without objects has a row too."""

    def write(root, stems_of=SPLITS):
        for split, name in names:
            lines = ["filename,width,height,class,xmin,ymin,xmax,ymax"] if titles else []
            for stem in stems_of[split]:
                picture(root / images_at.format(name) / f"{stem}.png")
                for of, (x, y, w, h) in BOXES[stem]:
                    corners = f"{x},{y},{x + w},{y + h}"
                    lines.append(f"{stem}.png,{WIDTH},{HEIGHT},{of},{corners}" if titles else f"a/{stem}.png,{corners},{of}")
            text(root / csv_at.format(name), "\n".join(lines))
        return root

    return write


def plain(name, box):
    x, y, w, h = box
    numbers = ((x + w / 2) / WIDTH, (y + h / 2) / HEIGHT, w / WIDTH, h / HEIGHT)
    return " ".join(map(str, (CLASSES.index(name), *numbers)))


def corners(name, box):
    x, y, w, h = box[0] / WIDTH, box[1] / HEIGHT, box[2] / WIDTH, box[3] / HEIGHT
    return " ".join(map(str, (CLASSES.index(name), x, y, x + w, y, x + w, y + h, x, y + h)))


def polygon(name, box):
    return f"{corners(name, box)} {(box[0] + box[2] / 2) / WIDTH} {(box[1] + box[3]) / HEIGHT}"


def yolo_layout(images_at, labels_at, head, line=plain, names=(("train", "train"), ("val", "val")), more=lambda root: None):
    """head: the YAML file's content, or {file: its text}."""

    def write(root, stems_of=SPLITS):
        for split, name in names:
            for stem in stems_of[split]:
                picture(root / images_at.format(name) / f"{stem}.png")
                text(root / labels_at.format(name) / f"{stem}.txt", "\n".join(line(*thing) for thing in BOXES[stem]))
        for file, content in head.items():
            text(root / file, content if isinstance(content, str) else yaml.safe_dump(content))
        more(root)
        return root

    return write


NAMES = {"names": list(CLASSES)}
FOLDERS = {"train": "images/train", "val": "images/val"}
VALID = (("train", "train"), ("val", "valid"))
YEAR = (("train", "train2017"), ("val", "val2017"))
UPPER = (("train", "Train"), ("val", "Validation"))


def lists(pattern):
    return {f"{split}.txt": "\n".join(pattern.format(stem) for stem in stems) for split, stems in SPLITS.items()}


LAYOUTS = {
    "COCO": coco_layout("annotations/instances_{}.json", "{}"),
    "COCO 2017": coco_layout("annotations/instances_{}.json", "{}", names=YEAR),
    "COCO 2017 below images": coco_layout("annotations/instances_{}.json", "images/{}", names=YEAR),
    "COCO with one folder of images": coco_layout("annotations/instances_{}.json", "images"),
    "COCO of CVAT": coco_layout("annotations/instances_{}.json", "images", names=UPPER),
    "COCO of CVAT, images a split": coco_layout("annotations/instances_{}.json", "images/{}", names=UPPER),
    "COCO, train.json": coco_layout("{}.json", "images"),
    "COCO, annotations/train.json": coco_layout("annotations/{}.json", "{}", names=VALID),
    "COCO, train_annotations.json": coco_layout("{}_annotations.json", "{}/images"),
    "COCO, train/annotations.json": coco_layout("{}/annotations.json", "{}/images"),
    "COCO of FiftyOne, a folder a split": coco_layout("{}/labels.json", "{}/data"),
    "COCO with a byte order mark": coco_layout("annotations/instances_{}.json", "{}", mark="\ufeff"),
    "COCO with folders in names": coco_layout("{}.json", "images/{}", prefix="images/{}/"),
    "COCO with backslashes": coco_layout("annotations/instances_{}.json", "{}", prefix="{}\\"),
    "COCO of another machine": coco_layout("annotations/instances_{}.json", "{}", prefix="/home/me/data/{}/"),
    "COCO of another Windows machine": coco_layout("annotations/instances_{}.json", "images/{}", prefix="C:\\me\\images\\{}\\"),
    "COCO with URL escapes": coco_layout("annotations/instances_{}.json", "{}/my photos", prefix="my%20photos/"),
    "COCO with names from nowhere": coco_layout("annotations/instances_{}.json", "{}", prefix="upload/7/"),
    "COCO of Roboflow": roboflow_coco,
    "VOC of Roboflow": voc_layout("{}", "{}", names=VALID),
    "VOC with lists, in lower case": voc_with_lists,
    "VOC, XML beside the images of images/train": voc_layout("images/{}", "images/{}"),
    "VOC, images and annots a split": voc_layout("{}/images", "{}/annots"),
    "VOC, Images and Annotations a split": voc_layout("{}/Images", "{}/Annotations"),
    "VOC, a folder a split in both": voc_layout("images/{}", "annotations/{}"),
    "CSV of TensorFlow's tutorials": csv_layout("annotations/{}_labels.csv", "images/{}", titles=True),
    "CSV of Roboflow": csv_layout("{}/_annotations.csv", "{}", titles=True, names=VALID),
    "CSV of RetinaNet": csv_layout("{}/_annotations.csv", "{}", titles=False, names=VALID),
    "YOLO": yolo_layout("images/{}", "labels/{}", {"data.yaml": NAMES}),
    "YOLO of Roboflow": yolo_layout(
        "{}/images", "{}/labels", {"data.yaml": NAMES | {"train": "../train/images", "val": "../valid/images"}}, names=VALID
    ),
    "YOLO, dataset.yaml": yolo_layout("images/{}", "labels/{}", {"dataset.yaml": NAMES | FOLDERS}),
    "YOLO, a YAML file of any name": yolo_layout("images/{}", "labels/{}", {"mine.yaml": NAMES | FOLDERS}),
    "YOLO, several folders": yolo_layout(
        "images/{}", "labels/{}", {"data.yaml": NAMES | {"train": ["images/train", "images/more"], "val": ["images/val"]}},
        more=lambda root: (
            os.renames(root / "images/train/b.png", root / "images/more/b.png"),
            os.renames(root / "labels/train/b.txt", root / "labels/more/b.txt"),
        ),
    ),
    "YOLO, lists": yolo_layout(
        "images", "labels", {"data.yaml": NAMES | {"train": "train.txt", "val": "val.txt"}} | lists("images/{}.png")
    ),
    "YOLO, autosplit": yolo_layout(
        "images", "labels",
        {"data.yaml": NAMES | {"train": "autosplit_train.txt", "val": "autosplit_val.txt"}}
        | {f"autosplit_{name}": content for name, content in lists("./images/{}.png").items()},
    ),
    "YOLO, lists of another machine": yolo_layout(
        "images", "labels",
        {"data.yaml": NAMES | {"train": "/home/me/d/train.txt", "val": "/home/me/d/val.txt"}}
        | lists("/home/me/d/images/{}.png"),
    ),
    "YOLO, patterns": yolo_layout(
        "images/{}", "labels/{}", {"data.yaml": NAMES | {"train": "images/train/*.png", "val": "images/va*"}}
    ),
    "YOLO, path of another machine": yolo_layout(
        "images/{}", "labels/{}", {"data.yaml": NAMES | {"path": "/home/me/d", "train": "images/train", "val": "images/val"}}
    ),
    "YOLO, Train: keys of CVAT": yolo_layout(
        "images/{}", "labels/{}", {"data.yaml": NAMES | {"Train": "images/train", "Validation": "images/val"}}
    ),
    "YOLO, labels beside the images": yolo_layout("{}", "{}", {"data.yaml": NAMES | {"train": "train", "val": "val"}}),
    "YOLO, polygons": yolo_layout("images/{}", "labels/{}", {"data.yaml": NAMES}, line=polygon),
    "YOLO, oriented boxes": yolo_layout("images/{}", "labels/{}", {"data.yaml": NAMES}, line=corners),
    "YOLO, confidence": yolo_layout("images/{}", "labels/{}", {"data.yaml": NAMES}, line=lambda *thing: plain(*thing) + " 0.9"),
    "YOLO, key points": yolo_layout(
        "images/{}", "labels/{}", {"data.yaml": NAMES | {"kpt_shape": [1, 2]}}, line=lambda *thing: plain(*thing) + " 0.9 0.9"
    ),
    "YOLO in darknet's form of Roboflow": yolo_layout(
        "{}", "{}", {f"{name}/_darknet.labels": "zebra\ncat\n" for name in ("train", "valid")}, names=VALID
    ),
    "YOLO, a folder named otherwise than the YAML says": yolo_layout(
        "{}/images",
        "{}/labels",
        {"data.yaml": NAMES | {"train": "../train/images", "val": "../valid/images"}},
        names=(("train", "train"), ("val", "validate")),
    ),
    "YOLO, classes.txt": yolo_layout("images/{}", "labels/{}", {"classes.txt": "zebra\ncat\n"}),
    "YOLO 1.1 of CVAT": yolo_layout(
        "obj_train_data", "obj_train_data",
        {"obj.data": "classes = 2\ntrain = data/train.txt\nvalid = data/val.txt\nnames = data/obj.names\nbackup = backup/\n",
         "obj.names": "zebra\ncat\n"} | lists("data/obj_train_data/{}.png"),
    ),
}  # fmt: skip

UNDIVIDED = {
    "COCO of CVAT": coco_layout("annotations/instances_default.json", "images"),
    "COCO of Label Studio": coco_layout("result.json", "images", prefix="images/"),
    "COCO of FiftyOne": coco_layout("labels.json", "data"),
    "COCO of any name": coco_layout("export.json", "."),
    "VOC of Kaggle": voc_layout("images", "annotations"),
    "VOC without lists": voc_layout("JPEGImages", "Annotations"),
    "VOC in one folder": voc_layout(".", "."),
    "CSV in one folder": csv_layout("annotations.csv", ".", titles=True),
    "YOLO of Label Studio": yolo_layout("images", "labels", {"classes.txt": "zebra\ncat\n", "notes.json": "{}"}),
    "YOLO in one folder": yolo_layout(".", ".", {"classes.txt": "zebra\ncat\n"}),
}


def found_in(split):
    """{stem: [(class, box), ...]} as a `CocoDataset` gives them."""
    dataset = CocoDataset(split, PLAIN)
    truth = dataset.ground_truth()
    names = {category["id"]: category["name"] for category in truth["categories"]}
    stems = {image["id"]: Path(image["file_name"]).stem for image in truth["images"]}
    found = {stem: [] for stem in stems.values()}
    for entry in truth["annotations"]:
        found[stems[entry["image_id"]]].append((names[entry["category_id"]], [round(side, 6) for side in entry["bbox"]]))
    assert {name for _, name in sorted(names.items())} == set(CLASSES)
    return found


def tree(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_read_without_a_flag(tmp_path, layout):
    data = LAYOUTS[layout](tmp_path / "data")
    before = tree(data)
    for split, stems in SPLITS.items():
        found = find_split(data, split)
        assert found_in(found) == {stem: BOXES[stem] for stem in stems}
        assert check(found) == []
    assert tree(data) == before


@pytest.mark.parametrize("layout", UNDIVIDED)
def test_a_set_that_is_not_divided_is_read_and_divided_when_asked(tmp_path, layout):
    data = UNDIVIDED[layout](tmp_path / "data", {"train": "abc", "val": "abc"})
    assert DataFolder(data).splits == ("all",)
    assert found_in(find_split(data, "all")) == BOXES
    with pytest.raises(UserError, match=r"is not divided into train and val; add --val-fraction 0\.2"):
        find_split(data, "train")
    parts = {name: found_in(Partition(data, 0.3).split(name)) for name in ("train", "val")}
    assert len(parts["val"]) == 1
    assert parts["train"] | parts["val"] == BOXES
    assert not parts["train"].keys() & parts["val"].keys()


def test_rows_of_a_csv_are_skipped_left_out_or_images_without_objects(tmp_path):
    data = LAYOUTS["CSV of RetinaNet"](tmp_path / "data")
    for stem in ("d", "e"):
        picture(data / "train" / f"{stem}.png")
    rows = (
        "a.png,8,4,48,24,cat\na.png,9,9,9,20,cat\na.png,1,b,3,4,cat\na.png,1,2,3,4,\nb.png,0,0,8,8,zebra\nx.png,1,2,3,4,cat\n"
    )
    text(data / "train" / "_annotations.csv", f"{rows}d.png,,,,,\n")
    split = find_split(data, "train")
    assert found_in(split) == {"a": BOXES["a"], "b": [("zebra", [0, 0, 8, 8])], "d": []}
    assert {fault.kind: fault.count for fault in check(split)} == dict.fromkeys(
        ("row without an image", "empty box", "box is not four finite numbers", "box without a class"), 1
    )
    assert DataFolder(data).recognised.said == [
        f"1 images without a row in _annotations.csv are left out, the first is {data / 'train' / 'e.png'}"
    ]


def test_every_state_of_a_layout_is_told_apart(tmp_path):
    for layout, change in (
        ("COCO of Roboflow", "train/a.png"),
        ("YOLO, lists", "images/a.png"),
        ("VOC of Roboflow", "train/a.png"),
    ):
        data = LAYOUTS[layout](tmp_path / layout)
        before = split_state("train", find_split(data, "train"))
        assert split_state("train", find_split(data, "train")) == before
        image = data / change
        image.write_bytes(image.read_bytes() + b"\0")
        assert changed(before, split_state("train", find_split(data, "train"))) == "images of train"


def test_annotations_are_found_without_images(tmp_path):
    for layout in ("COCO of Roboflow", "COCO of CVAT", "COCO, train.json"):
        data = LAYOUTS[layout](tmp_path / layout)
        for image in data.rglob("*.png"):
            image.unlink()
        assert len(json.loads(DataFolder(data).annotations("val").read_text())["images"]) == 1


def test_roboflows_supercategory_is_dropped_and_said(tmp_path):
    data = roboflow_coco(tmp_path / "data")
    assert DataFolder(data).splits == ("train", "val", "test")
    assert class_map_of(find_split(data, "train")).names == ("cat", "zebra")
    assert notes(find_split(data, "train")) == ["the category 'animals' has no box and stands above the others; it is left out"]


def test_a_root_named_like_its_only_class_is_no_duplicate(tmp_path):
    data = roboflow_coco(tmp_path / "data")
    for file in data.rglob("*.json"):
        content = json.loads(file.read_text())
        content["categories"] = [
            {"id": 0, "name": "cat", "supercategory": "none"},
            {"id": 1, "name": "cat", "supercategory": "cat"},
        ]
        content["annotations"] = [entry | {"category_id": 1} for entry in content["annotations"]]
        file.write_text(json.dumps(content))
    assert class_map_of(find_split(data, "val")).names == ("cat",)
    assert class_map_of(find_split(data, "val")).dataset_ids == (1,)


def test_a_category_that_another_split_has_boxes_of_stays(tmp_path):
    data = roboflow_coco(tmp_path / "data")
    file = data / "test" / "_annotations.coco.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["category_id"] = 0
    file.write_text(json.dumps(content))
    assert class_map_of(find_split(data, "train")).names == ("animals", "cat", "zebra")


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"train": ["images/train", "images/gone"]}, r"names images/gone as 'train', and there is no such folder"),
        ({"train": "gone.txt"}, r"names gone\.txt as 'train', and there is no such folder, list"),
        ({"train": "images/*.gif"}, r"names images/\*\.gif as 'train'"),
        ({"train": {"a": 1}}, r"'train' has \{'a': 1\}, which is no folder, list of images or pattern"),
        ({"train": [3]}, r"'train' has 3, which is no folder"),
        ({"train": "data.yaml"}, r"names data\.yaml as 'train'"),
        ({"train": "/elsewhere/images/night"}, None),
    ],
)
def test_what_a_yaml_names_is_read_or_refused_but_never_replaced_in_silence(tmp_path, caplog, named, message):
    head = {"data.yaml": NAMES | {"val": "images/val"} | named}
    data = yolo_layout("images/{}", "labels/{}", head)(tmp_path / "data")
    if message is None:
        assert found_in(find_split(data, "train")).keys() == {"a", "b"}
        assert "train images /elsewhere/images/night are not there; those in" in caplog.text
        return
    with pytest.raises(UserError, match=message):
        find_split(data, "train")


def test_names_that_differ_between_splits_are_refused(tmp_path):
    data = LAYOUTS["YOLO in darknet's form of Roboflow"](tmp_path / "data")
    text(data / "valid" / "_darknet.labels", "cat\nzebra\n")
    with pytest.raises(UserError, match=r"_darknet\.labels and those of the other splits list other classes"):
        find_split(data, "train")


def test_images_in_two_splits_are_said(tmp_path, caplog):
    data = LAYOUTS["YOLO, lists"](tmp_path / "data")
    text(data / "val.txt", "images/b.png\nimages/c.png")
    find_split(data, "train")
    assert "1 images are both in train and in val" in caplog.text


def test_no_image_outside_of_the_folder_and_none_for_two_names_is_taken(tmp_path):
    picture(tmp_path / "a.png")
    data = LAYOUTS["COCO"](tmp_path / "data")
    file = data / "annotations" / "instances_train.json"
    (data / "train" / "a.png").unlink()
    with pytest.raises(UserError, match=r"1 of the 2 images of .* do not exist"):
        CocoDataset(find_split(data, "train"), PLAIN)
    content = coco("ab")
    content["images"][0]["file_name"], content["images"][1]["file_name"] = "x/b.png", "y/b.png"
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"2 of the 2 images of .* do not exist"):
        CocoDataset(find_split(data, "train"), PLAIN)


@pytest.mark.parametrize("name", ["../../secret.png", "{}/secret.png", "../train/../../secret.png"])
def test_a_file_name_cannot_reach_out_of_the_data_but_a_link_can(tmp_path, name):
    picture(tmp_path / "secret.png")
    data = LAYOUTS["COCO"](tmp_path / "data")
    file = data / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    content["images"][0]["file_name"] = name.format(tmp_path)
    file.write_text(json.dumps(content))
    for reads in (lambda split: CocoDataset(split, PLAIN), check):
        with pytest.raises(UserError, match=r"instances_train\.json names images outside of .*, 1 in all, .*secret\.png; "):
            reads(find_split(data, "train"))
    assert len(CocoDataset(Split(file, tmp_path, (data / "train",)), PLAIN)) == 2  # as --images says
    (data / "train" / "link.png").symlink_to(tmp_path / "secret.png")
    content["images"][0]["file_name"] = "link.png"
    file.write_text(json.dumps(content))
    assert len(CocoDataset(find_split(data, "train"), PLAIN)) == 2


def test_a_list_of_yolos_cannot_reach_out_of_the_data(tmp_path):
    picture(tmp_path / "images" / "secret.png")
    data = LAYOUTS["YOLO, lists"](tmp_path / "data")
    with open(data / "train.txt", "a") as lines:
        lines.write("\n../images/secret.png\n")
    with pytest.raises(UserError, match=r"train\.txt lists \.\./images/secret\.png, which is outside of .*; name the folder"):
        find_split(data, "train")


@pytest.mark.parametrize("name", ["a" * 300 + ".png", "\ud800.png", "a\0.png", ""])
def test_what_no_file_can_be_called_is_a_missing_image(tmp_path, name):
    data = LAYOUTS["COCO"](tmp_path / "data")
    file = data / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    content["images"][0]["file_name"] = name
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"1 of the 2 images of .* do not exist"):
        CocoDataset(find_split(data, "train"), PLAIN)
    assert [str(fault) for fault in check(find_split(data, "train"))] == ["missing image"]


def test_two_files_for_one_split_are_refused(tmp_path):
    data = LAYOUTS["COCO, train_annotations.json"](tmp_path / "data")
    text(data / "annotations_train.json", (data / "train_annotations.json").read_text())
    with pytest.raises(UserError, match=r"several COCO files for train \(annotations_train\.json, train_annotations\.json\)"):
        find_split(data, "train")


def test_a_draw_follows_its_seed_and_keeps_groups_together(tmp_path):
    stems = [f"video{video}_{frame}" for video in range(5) for frame in range(4)]
    images = [{"id": n, "file_name": f"{stem}.png", "width": WIDTH, "height": HEIGHT} for n, stem in enumerate(stems)]
    for stem in stems:
        picture(tmp_path / "data" / f"{stem}.png")
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    text(tmp_path / "data" / "all.json", json.dumps(content))

    def drawn(**options):
        split = Partition(tmp_path / "data", 0.4, **options).split("val")
        return {Path(CocoDataset(split, PLAIN).path(n)).stem for n in range(len(CocoDataset(split, PLAIN)))}

    assert len(drawn()) == 8
    assert drawn() == drawn()
    assert drawn() != drawn(seed=1)
    together = drawn(group=r"^(video\d+)_")
    assert len(together) == 8
    assert len({stem.split("_")[0] for stem in together}) == 2
    Partition(tmp_path / "data", 0.4, group="video[0-9]").write(tmp_path / "split.json")
    written = json.loads((tmp_path / "split.json").read_text())
    assert (written["fraction"], written["seed"], written["group"]) == (0.4, 0, "video[0-9]")
    assert sorted(written["train"] + written["val"]) == sorted(f"{stem}.png" for stem in stems)
    with pytest.raises(UserError, match=r"20 images in 1 groups leave none to train on"):
        Partition(tmp_path / "data", 0.4, group="video").split("val")
    with pytest.raises(UserError, match=r"a validation fraction of 2 cannot be"):
        Partition(tmp_path / "data", 2).split("val")
    with pytest.raises(UserError, match=r"--val-group \(: "):
        Partition(tmp_path / "data", 0.4, group="(").split("val")


def test_what_has_validation_images_is_not_divided(tmp_path):
    with pytest.raises(UserError, match="has validation images of its own; leave out --val-fraction"):
        Partition(LAYOUTS["COCO"](tmp_path / "data"), 0.5).split("val")


def test_copies_across_splits_are_found(tmp_path):
    data = LAYOUTS["COCO"](tmp_path / "data")
    splits = {name: find_split(data, name) for name in ("train", "val")}
    assert near_duplicates(splits) == []
    blocks = np.random.default_rng(0).integers(0, 256, (4, 8, 3), dtype=np.uint8)
    photograph = Image.fromarray(blocks).resize((WIDTH, HEIGHT))
    photograph.save(data / "train" / "a.png")
    photograph.resize((WIDTH * 2, HEIGHT * 2)).save(data / "val" / "c.png", format="JPEG")
    (fault,) = near_duplicates(splits)
    assert (fault.kind, fault.count) == ("image of val nearly the same as one of train", 1)
    assert all(name in fault.examples[0] for name in ("val/c.png", "train/a.png"))
    for path in ("train/a.png", "val/c.png"):
        Image.new("RGB", (WIDTH, HEIGHT), "grey").save(data / path)
    assert near_duplicates(splits) == []  # of a plain surface nothing can be said
