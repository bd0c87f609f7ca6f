"""A cached teacher teaches what the teacher itself would, without running, and is never taken for another one's."""

import shutil
from collections import namedtuple

import pytest
import torch

from leandetr.data.batches import collate
from leandetr.data.coco import CocoDataset, class_map_of, find_split
from leandetr.data.shapes import write_shapes
from leandetr.data.transforms import train_transform
from leandetr.detectors.create import create
from leandetr.distillation import DetectorTeacher, Distillation, Distiller, build_terms
from leandetr.distillation.cache import Part, Pieces, TeacherCache
from leandetr.errors import UserError

SIZE = {"d_model": 32, "decoder_layers": 2, "encoder_layers": 1, "num_queries": 6, "decoder_ffn_dim": 32}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("shapes") / "data", 5, 1, (64, 64))


@pytest.fixture
def images(shapes):
    """images(augment=..., views=..., seed=...) -> the training set."""

    def build(augment="ssd", size=(64, 64), **options):
        detector = create("detr", class_map_of(find_split(shapes, "train")), size, "test_resnet", overrides=SIZE)
        return CocoDataset(find_split(shapes, "train"), train_transform(detector.preprocessing, augment), **options)

    return build


@pytest.fixture
def detector(shapes):
    """detector(name, seed) -> a tiny one, in evaluation mode; equal seeds give equal ones."""

    def build(name="detr", seed=0, size=(64, 64), **overrides):
        torch.manual_seed(seed)
        classes = class_map_of(find_split(shapes, "train"))
        shape = {key: SIZE[key] for key in SIZE if name != "adamixer" or key != "encoder_layers"}
        found = create(name, classes, size, "test_resnet", overrides=shape | overrides).eval()
        with torch.no_grad():  # an untrained head is sure of nothing
            for module in found.modules():
                if isinstance(module, torch.nn.Linear) and module.out_features in (len(classes), len(classes) + 1):
                    module.bias[0] += 8
        return found

    return build


def losses(distiller, dataset, epochs):
    """Of a batch in every epoch: the loss and the norm of its gradient."""
    found = []
    for epoch in range(epochs):
        dataset.set_epoch(epoch)
        torch.manual_seed(0)  # for denoising queries
        distiller.zero_grad()
        loss = distiller(**collate([dataset[index] for index in (4, 0, 2)])).loss
        loss.backward()
        gradient = torch.stack([p.grad.norm() for p in distiller.parameters() if p.grad is not None]).norm()
        found += [loss.detach(), gradient]
    return torch.stack(found)


@pytest.mark.parametrize("family", ["detr", "rt_detr_v2", "deformable_detr", "adamixer"])
def test_losses_and_gradients_are_those_of_the_teacher_which_does_not_run(detector, images, tmp_path, monkeypatch, family):
    name = "conditional_detr" if family == "detr" else family
    size = (128, 128)
    teacher = detector(family, seed=1, num_queries=9, size=size)
    learned = family in ("detr", "deformable_detr")
    methods = [
        "logits",
        "features",
        "fitnet",
        *(["soft-label"] if learned else []),
        *(["assignment"] if family != "detr" else []),
    ]

    def distiller():
        student = detector(name, size=size)
        options = {} if family == "detr" else {"kd-detr": {"general": False}}
        chosen = ",".join([*methods, *options])
        torch.manual_seed(0)
        terms = build_terms(Distillation(method=chosen, options=options), student, teacher)
        return Distiller(student, teacher, terms)

    train, expected = images(views=2, size=size), distiller()
    expected = losses(expected, train, epochs=3)
    cached = distiller()
    cached.remember(train, tmp_path / "cache", epochs=3, batch_size=2)
    monkeypatch.setattr(teacher, "forward", None)
    found = losses(cached, train, epochs=3)
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-4)
    again = distiller()
    again.remember(images(views=2, seed=5, size=size), tmp_path / "cache", epochs=9)  # another seed has the same views
    assert torch.equal(losses(again, train, epochs=1), found[:2])


def test_what_another_method_needs_is_added_and_nothing_else(detector, images, tmp_path, capsys):
    teacher, student = detector(seed=1), detector()
    for method, fields in (("logits", {"boxes", "logits"}), ("fitnet", {"boxes", "logits", "features"})):
        module = Distiller(student, teacher, build_terms(method, student, teacher))
        module.remember(images(views=2), tmp_path / "cache", epochs=1)
        assert {path.name for path in (tmp_path / "cache").iterdir()} == fields | {"leandetr.json"}
    module.remember(images(views=3), tmp_path / "cache", epochs=2)  # more views of the same images
    said = " ".join(capsys.readouterr().err.split())
    assert "MB for the teacher's answers to 2 x 5 views (features)" in said
    files = [path for path in (tmp_path / "cache").rglob("*.safetensors") if "features" in str(path)]
    assert len(files) == 2
    size = sum(file.stat().st_size for file in files)
    assert size == pytest.approx(2 * 5 * 32 * 2 * 2 * 2, rel=0.2)  # 32 channels of 2 x 2 cells in half precision


def test_filling_goes_on_where_it_was_interrupted(detector, images, tmp_path, monkeypatch):
    teacher, student = detector(seed=1), detector()
    module = Distiller(student, teacher, build_terms("logits", student, teacher))
    whole, calls = teacher.forward, []

    def killed(*given, **options):
        calls.append(len(given[0]))
        if len(calls) == 5:
            raise KeyboardInterrupt
        return whole(*given, **options)

    monkeypatch.setattr(teacher, "forward", killed)
    with pytest.raises(KeyboardInterrupt):
        module.remember(images(views=2), tmp_path / "cache", epochs=2, batch_size=2)
    assert type(module.teacher) is DetectorTeacher
    assert calls == [1, 2, 2, 1, 2]  # one view to see how large an answer is
    assert len(list((tmp_path / "cache").rglob("view-000/*"))) == 2
    assert not list((tmp_path / "cache").rglob("view-001/*"))
    module.remember(images(views=2), tmp_path / "cache", epochs=2, batch_size=4)
    assert calls[5:] == [1, 4, 1]
    module.remember(images(views=2), tmp_path / "cache", epochs=2)
    assert len(calls) == 8


@pytest.mark.parametrize(
    ("teacher", "data", "message"),
    [
        ({"seed": 2}, {}, "another teacher; name another folder"),
        ({}, {"augment": "flip"}, "another image size or augmentation; "),
        ({}, {"size": (96, 64)}, "another image size or augmentation; "),
        ({}, {"shuffled": True}, "another data; "),
    ],
)
def test_another_teachers_answers_are_refused(detector, images, shapes, tmp_path, teacher, data, message):
    TeacherCache(tmp_path / "cache", DetectorTeacher(detector(seed=1), detector()), images(views=1), ["logits"])
    changed = images(views=1, **{k: v for k, v in data.items() if k != "shuffled"})
    if "shuffled" in data:
        changed.annotations.boxes[0] += 1
    with pytest.raises(UserError, match=message):
        TeacherCache(tmp_path / "cache", DetectorTeacher(detector(**{"seed": 1} | teacher), detector()), changed, ["logits"])


def test_what_cannot_be_cached_is_refused(detector, images, tmp_path, monkeypatch):
    teacher, student = detector(seed=1), detector()

    def module(method):
        return Distiller(student, teacher, build_terms(method, student, teacher))

    with pytest.raises(UserError, match=r"training\.augment draws new ones in every epoch: set training\.views"):
        module("logits").remember(images(), tmp_path / "cache", epochs=1)
    with pytest.raises(
        UserError, match=r"the kd-detr term asks the teacher's memory in every step, .* set general of kd-detr to false"
    ):
        module("kd-detr").remember(images(views=1), tmp_path / "cache", epochs=1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(1000))
    with pytest.raises(UserError, match=r"cache has 0\.0 MB free of the 0\.0 MB for the teacher's answers"):
        module("logits").remember(images(views=1), tmp_path / "cache", epochs=1)


def test_a_spoilt_file_is_named(detector, images, tmp_path):
    student, teacher, train = detector(), detector(seed=1), images(views=1)
    module = Distiller(student, teacher, build_terms("logits", student, teacher))
    module.remember(train, tmp_path / "cache", epochs=1)
    file = tmp_path / "cache" / "logits" / "view-000" / "images-000000.safetensors"
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(UserError, match=r"images-000000\.safetensors of the teacher's cache cannot be read"):
        module(**collate([train[0]]))


def test_parts_cover_the_images_once(images):
    pieces = Pieces(images(views=1), [Part(0, 0, 3), Part(0, 3, 5)], 2)
    assert [(part.first, list(indices)) for part, indices in pieces.pieces] == [(0, [0, 1]), (0, [2]), (3, [3, 4])]
