"""A new model from a file of weights: a whole detector where it is one of its family, else the backbone, and which is said."""

import pytest
import torch

from leandetr.detectors.build import build
from leandetr.detectors.spec import NewDetector
from leandetr.errors import UserError
from leandetr.structures import ClassMap

TINY = {
    "backbone_config.depths": [1, 1, 1, 1],
    "backbone_config.hidden_sizes": [24, 32, 40, 48],
    "backbone_config.embedding_size": 24,
    "backbone_config.layer_type": "basic",
}
OTHER = ClassMap(("star", "cone"), (1, 2))


@pytest.fixture
def saved(tiny_detector, tmp_path):
    detector = tiny_detector("rt_detr_v2", "rt_detr_resnet", **TINY)
    with torch.no_grad():
        for parameter in detector.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    detector.save(tmp_path / "saved")
    return detector


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_whole_detector_of_the_family_is_taken_whole(saved, tmp_path, name):
    file, said = tmp_path / "saved" / name, []
    if name == "pytorch_model.bin":
        (tmp_path / "saved" / "model.safetensors").unlink()
        torch.save(saved.model.state_dict(), file)
    found = build(NewDetector(model="rt_detr_v2", weights=str(file), queries=9), OTHER, said.append)
    assert said[0] == f"{file} is a whole rt_detr_v2, which is trained further; name its --backbone to take that alone"
    assert said[1].endswith("kept 1 of the classes (star), 1 new (cone), dropped 4 (disc, square, ring, cross)")
    assert (found.preprocessing.size, found.config.num_queries) == ((128, 128), 9)
    then, now = saved.model.state_dict(), found.model.state_dict()
    assert torch.equal(now["model.decoder.class_embed.2.weight"][0], then["model.decoder.class_embed.2.weight"][2])
    same = [key for key in then if "class_embed" not in key and "score_head" not in key]
    assert all(torch.equal(now[key], then[key]) for key in same)


def test_for_another_family_or_a_named_backbone_the_backbone_alone_is_taken(saved, tmp_path):
    file, said, small = (
        str(tmp_path / "saved" / "model.safetensors"),
        [],
        {"d_model": 64, "decoder_layers": 2, "num_queries": 5},
    )
    other = NewDetector(model="rt_detr", weights=file, image_size=(64, 64), set=TINY | small)
    named = NewDetector(model="rt_detr_v2", backbone="rt_detr_resnet", weights=file, image_size=(64, 64), set=TINY | small)
    then = saved.family.backbone(saved.model).state_dict()
    for new in (other, named):
        found = build(new, OTHER, said.append)
        assert (found.config.decoder_layers, found.config.num_queries) == (2, 5)
        now = found.family.backbone(found.model).state_dict()
        assert all(torch.equal(now[key], then[key]) for key in now if "num_batches" not in key)
    assert said == [f"{file} is a rt_detr_v2, and the model a rt_detr: its backbone alone is taken"]


def test_a_file_that_does_not_say_what_it_is_is_a_sentence(saved, tmp_path):
    (tmp_path / "saved" / "config.json").unlink()
    file = str(tmp_path / "saved" / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors holds a whole detector, and no config\.json beside it says which"):
        build(NewDetector(model="rt_detr_v2", weights=file, image_size=(64, 64)), OTHER)
