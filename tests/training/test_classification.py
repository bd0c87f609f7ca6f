"""What pre-training promises: a file that fits every kind of detector backbone, the best by top-1, and the same weights after a
kill."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from leandetr import verbs
from leandetr.data.partition import Partition
from leandetr.data.shapes import write_shapes
from leandetr.detectors.create import create
from leandetr.detectors.detector import Detector
from leandetr.detectors.spec import NewBackbone
from leandetr.errors import UserError
from leandetr.structures import ClassMap
from leandetr.training import classification
from leandetr.training import fit as fitting
from leandetr.training.config import Training

SMALL = {"d_model": 32, "decoder_layers": 2, "encoder_layers": 1, "num_queries": 6, "decoder_ffn_dim": 32}
SWIN = {"embed_dim": 24, "depths": [1, 1, 1, 1]}
RESNET = NewBackbone(name="test_resnet", image_size=(32, 32))
SHORT = Training(epochs=2, batch_size=4, lr=3e-3, workers=0, ema=0.9, precision="float32")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two classes told apart by colour."""
    folder, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for channel, name in enumerate(("red", "green")):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 120, (40, 40, 3), dtype=np.uint8)
                pixels[..., channel] += 120
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return folder


@pytest.mark.parametrize(
    ("backbone", "overrides", "model", "size"),
    [
        ("test_resnet", {}, "detr", 64),
        ("test_resnet", {}, "rt_detr_v2", 64),
        ("rt_detr_resnet", {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1]}, "rt_detr_v2", 64),
        ("swin_tiny", SWIN, "swin_detr", 64),
    ],
)
def test_a_detector_takes_the_weights(images, tmp_path, backbone, overrides, model, size):
    new = NewBackbone(name=backbone, image_size=(size, size), set=overrides)
    given = images, new, tmp_path / "b", None, SHORT.model_copy(update={"max_steps": 2})
    top1 = verbs.pretrain(*given)
    assert 0 <= top1 <= 1
    file = tmp_path / "b" / "backbone.safetensors"
    inner = {f"backbone_config.{key}": value for key, value in overrides.items()}
    detector = create(model, ClassMap(("a", "b"), (1, 2)), (size, size), backbone, str(file), SMALL | inner)
    assert isinstance(detector, Detector)
    own = detector.family.backbone(detector.model).state_dict()
    trained = load_file(file)
    found = 0
    for name, tensor in trained.items():
        bare = name.removeprefix("_backbone.").removeprefix("model.")
        match = next((own[key] for key in own if key.removeprefix("_backbone.").removeprefix("model.") == bare), None)
        if match is not None and tensor.is_floating_point():
            assert torch.equal(match, tensor)
            found += 1
    assert found > 10
    assert verbs.pretrain(*given) == top1


def test_validation_images_can_be_drawn_from_detection_data(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_shapes(tmp_path / "data", train=12, val=1, size=(64, 64))
    shutil.rmtree(tmp_path / "data" / "val")
    (tmp_path / "data" / "annotations" / "instances_val.json").unlink()
    short = SHORT.model_copy(update={"max_steps": 1})
    verbs.pretrain(Partition(tmp_path / "data", 0.5), RESNET, tmp_path / "b", training=short)
    assert (tmp_path / "b" / "backbone.safetensors").is_file()


def test_it_learns_and_keeps_the_best(images, tmp_path):
    top1 = verbs.pretrain(images, RESNET, tmp_path / "b", training=SHORT.model_copy(update={"epochs": 6}))
    assert top1 >= 0.9
    assert not list((tmp_path / "b" / "training").glob("checkpoint-*"))


def test_killed_and_started_again_it_ends_with_the_same_weights(images, tmp_path, monkeypatch):
    verbs.pretrain(images, RESNET, tmp_path / "whole", training=SHORT)

    class Killed(BaseException):
        pass

    class Killer(fitting.ProgressBar):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 6:
                raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(fitting, "ProgressBar", Killer)
        with pytest.raises(Killed):
            verbs.pretrain(images, RESNET, tmp_path / "killed", training=SHORT)
    torch.manual_seed(99)
    verbs.pretrain(images, RESNET, tmp_path / "killed", training=SHORT)
    whole, killed = (load_file(tmp_path / name / "backbone.safetensors") for name in ("whole", "killed"))
    assert [name for name in whole if not torch.equal(whole[name], killed[name])] == []


def test_a_backbone_trained_in_few_bits_is_kept_as_float_weights(images, tmp_path):
    top1 = verbs.pretrain(images, RESNET, tmp_path / "float", training=SHORT.model_copy(update={"epochs": 6}))
    start = tmp_path / "float" / "backbone.safetensors"
    low = verbs.pretrain(images, RESNET.model_copy(update={"weights": str(start)}), tmp_path / "low", "4", training=SHORT)
    assert low >= 0.75 * top1
    floats, trained = load_file(start), load_file(tmp_path / "low" / "backbone.safetensors")
    assert floats.keys() == trained.keys()
    assert any(not torch.equal(floats[name], trained[name]) for name in floats)
    small = SMALL | {"num_queries": 6}
    create("detr", ClassMap(("a", "b"), (1, 2)), (32, 32), "test_resnet", str(tmp_path / "low" / "backbone.safetensors"), small)


def test_the_last_map_is_averaged_and_classified():
    described = classification.describe(RESNET)
    classifier = classification.Classifier(described, ["a", "b", "c"]).eval()
    pixels, labels = torch.randn(2, 3, 32, 32), torch.tensor([0, 2])
    output = classifier(pixels, labels)
    features = classifier.backbone(pixels).feature_maps[-1]
    want = features.mean((2, 3)) @ classifier.head.weight.T + classifier.head.bias
    torch.testing.assert_close(output.logits, want)
    smoothed = 0.9 * torch.eye(3)[labels] + 0.1 / 3
    torch.testing.assert_close(output.loss, -(smoothed * want.log_softmax(-1)).sum(-1).mean())


def test_faults_leave_no_folder_behind(images, tmp_path):
    for backbone, fault in (("resnet81", "did you mean"), ("lw_detr_vit", "cannot be pretrained here")):
        with pytest.raises(UserError, match=fault):
            verbs.pretrain(images, NewBackbone(name=backbone, image_size=(32, 32)), tmp_path / "b")
        assert not (tmp_path / "b").exists()
    with pytest.raises(UserError, match="images of 0 x 32 cannot be; give --image-size"):
        verbs.pretrain(images, NewBackbone(name="test_resnet", image_size=(0, 32)), tmp_path / "b")
    with pytest.raises(UserError, match="does not exist"):
        verbs.pretrain(tmp_path / "nothing", RESNET, tmp_path / "b")
