"""Detectors of torchvision: named or from a file, their classes by name, detections in the photographs' own pixels."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import get_model

from leandetr.detectors.checkpoints.published_classes import COCO_BY_ID, published_classes
from leandetr.detectors.teachers import TorchvisionDetector, load_torchvision, names_torchvision
from leandetr.errors import UserError
from leandetr.structures import ClassMap

SMALLEST = "fasterrcnn_mobilenet_v3_large_320_fpn"
NAMES = ["__background__", "disc", "square", "star"]


class Squares(torch.nn.Module):
    """In torchvision's manner: answers every image with its two halves, of which the first has the higher score."""

    def __init__(self):
        super().__init__()
        self.transform = get_model(SMALLEST, weights=None, weights_backbone=None, num_classes=4).transform
        self.register_parameter("weight", torch.nn.Parameter(torch.zeros(1)))

    def forward(self, images):
        self.seen = images
        height = [image.shape[1] for image in images]
        width = [image.shape[2] for image in images]
        return [
            {
                "boxes": torch.tensor([[0.0, 0, w / 2, h], [w / 2, 0, w, h]]),
                "labels": torch.tensor([1, 3]),
                "scores": torch.tensor([0.9, 0.4]),
            }
            for h, w in zip(height, width)
        ]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of the smallest detector with three classes and its background, and the names beside it."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "own.pth"
    model = get_model(SMALLEST, weights=None, weights_backbone=None, num_classes=4)
    torch.save({"model": model.state_dict(), "epoch": 3}, file)
    save_file(model.state_dict(), file.with_suffix(".safetensors"))
    file.with_suffix(".json").write_text(json.dumps(NAMES))
    return file


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_fills_the_detector_that_it_is_of(weights, suffix):
    file = weights.with_suffix(suffix)
    assert names_torchvision(f"{SMALLEST}:{file}")
    assert not names_torchvision(file)
    found = load_torchvision(f"{SMALLEST}:{file}")
    assert found.class_map == ClassMap(tuple(NAMES), (0, 1, 2, 3))
    state = torch.load(weights, weights_only=True)["model"]
    assert all(torch.equal(value, state[key]) for key, value in found.model.state_dict().items())
    answer = found.detect([torch.rand(3, 64, 96)])[0]
    assert answer.boxes.shape == (len(answer.scores), 4)
    assert not (answer.labels == 0).any()


@pytest.mark.parametrize(
    ("name", "columns"), [("retinanet_resnet50_fpn", 3), ("fcos_resnet50_fpn", 91), ("fasterrcnn_mobilenet_v3_large_fpn", 91)]
)
def test_the_number_of_classes_is_the_files(tmp_path, name, columns):
    state = get_model(name, weights=None, weights_backbone=None, num_classes=columns).state_dict()
    torch.save({key: value for key, value in state.items() if "num_batches" not in key}, tmp_path / "own.pth")  # frozen norms
    if columns == 3:
        (tmp_path / "own.json").write_text('["cat", "dog", "N/A"]')
    found = load_torchvision(f"{name}:{tmp_path / 'own.pth'}")
    assert found.class_map.names == (COCO_BY_ID if columns == 91 else ("cat", "dog", "N/A"))


def test_boxes_are_in_pixels_of_the_photograph(classes):
    found = TorchvisionDetector("squares", Squares(), ClassMap(tuple(NAMES), (0, 1, 2, 3)))
    assert (found.preprocessing.shortest_edge, found.preprocessing.longest_edge) == (320, 640)
    labels = [{"size": torch.tensor([20, 40]), "orig_size": torch.tensor([200, 300])}, {"size": torch.tensor([32, 32])}]
    labels[1]["orig_size"] = torch.tensor([64, 64])
    first, second = found.predict({"pixel_values": torch.rand(2, 3, 32, 40), "labels": labels})
    assert [tuple(image.shape) for image in found.model.seen] == [(3, 20, 40), (3, 32, 32)]  # without padding
    assert first.boxes.tolist() == [[0, 0, 150, 200], [150, 0, 300, 200]]
    assert second.boxes.tolist() == [[0, 0, 32, 64], [32, 0, 64, 64]]


def test_classes_that_a_file_does_not_name(tmp_path):
    coco = published_classes(80)
    assert (coco.names[0], coco.dataset_ids[0], coco.names[-1], coco.dataset_ids[-1]) == ("person", 1, "toothbrush", 90)
    assert len(coco.names) == 80
    assert coco.contiguous(13) == 11  # COCO has no 12
    by_id = published_classes(91)
    assert (by_id.names[90], by_id.names[12], by_id.dataset_ids[90]) == ("toothbrush", "N/A", 90)
    with pytest.raises(UserError, match=r"own\.pth has 4 classes, which are not COCO's: write their names, .*own\.json"):
        published_classes(4, tmp_path / "own.pth")
    (tmp_path / "own.json").write_text('["cat", "dog"]')
    with pytest.raises(UserError, match=r"own\.json must be a list of 4 class names"):
        published_classes(4, tmp_path / "own.pth")


def test_what_cannot_be_loaded_is_said_in_one_sentence(weights, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="unknown torchvision detector 'fasterrcnn_resnet51_fpn': did you mean"):
        load_torchvision("fasterrcnn_resnet51_fpn")
    with pytest.raises(UserError, match=r"nowhere\.pth: no such file"):
        load_torchvision(f"{SMALLEST}:{tmp_path / 'nowhere.pth'}")
    with pytest.raises(UserError, match="is not of a fcos_resnet50_fpn"):
        load_torchvision(f"fcos_resnet50_fpn:{weights}")
    with pytest.raises(UserError, match=r"weights do not fit this detector \(backbone\.body\.\S+, \S+, \S+\)"):
        load_torchvision(f"fasterrcnn_resnet50_fpn:{weights}")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: (_ for _ in ()).throw(OSError("no network")))
    with pytest.raises(UserError, match=r"weights cannot be had \(no network\); put https://\S+ into \S+checkpoints, or name"):
        load_torchvision(SMALLEST)
    renamed = tmp_path / "own.pth"
    renamed.write_bytes(weights.read_bytes())
    renamed.with_suffix(".json").write_text('["disc", "square", "star", "ring"]')
    with pytest.raises(UserError, match=r"own\.json begins with 'disc', and the first column of Faster R-CNN is"):
        load_torchvision(f"{SMALLEST}:{renamed}")
