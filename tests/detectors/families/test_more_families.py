"""What the families beyond the first five promise: their own answers and losses layer by layer, the decoder again on other
queries, groups that only training sees, valid sizes, folders and ONNX files."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from leandetr.detectors import names
from leandetr.detectors.checkpoints.load import load
from leandetr.detectors.create import create
from leandetr.detectors.families.deformable_detr import DeformableDetr
from leandetr.detectors.families.registry import FAMILIES
from leandetr.detectors.names import MODELS
from leandetr.errors import UserError
from leandetr.heads import Head
from leandetr.structures import Queries

DECODER = {"decoder_layers": 3, "num_queries": 12, "decoder_ffn_dim": 64}
PLAIN = DECODER | {"d_model": 64, "encoder_layers": 1}
VIT = {"num_hidden_layers": 4, "num_attention_heads": 2, "out_indices": [2, 4]}
LIGHT = DECODER | {"d_model": 64, "group_detr": 3}


def inside(values):
    return {f"backbone_config.{key}": value for key, value in values.items()}


#: name -> backbone (None: the family's own) and overrides of a model for 128 x 128 images
TINY = {
    "deformable_detr_two_stage": ("test_resnet", PLAIN),
    "dab_detr": ("test_resnet", DECODER | {"hidden_size": 64, "encoder_layers": 1}),
    "smca_detr": ("test_resnet", PLAIN),
    "adamixer": ("test_resnet", DECODER | {"d_model": 64}),
    "swin_detr": (None, PLAIN | inside({"embed_dim": 24, "depths": [1, 1, 1, 1]})),
    "d_fine": ("test_resnet", PLAIN | {"num_denoising": 20}),
    "deimv2": ("test_resnet", PLAIN | {"num_denoising": 20}),
    "lw_detr": (None, LIGHT | inside(VIT | {"hidden_size": 36, "window_block_indices": [0, 2]})),
    "rf_detr": (None, LIGHT | {"dropout": 0.0} | inside(VIT | {"hidden_size": 32, "patch_size": 16, "num_windows": 2})),
}
LEVELS = {
    "deformable_detr_two_stage": [16, 8, 4, 2],
    "dab_detr": [4],
    "smca_detr": [4],
    "adamixer": [32, 16, 8, 4],
    "swin_detr": [16, 8, 4],
    "d_fine": [16, 8, 4],
    "deimv2": [16, 8, 4],
    "lw_detr": [8],
    "rf_detr": [8],
}
DENOISING = ["d_fine", "deimv2"]
GROUPS = ["lw_detr", "rf_detr"]

# Parameters that no loss of the family reaches; the classes in `families/` say why.
CONSTANTS = ["decoder.reg_scale", "decoder.up"]
WITHOUT_SIGNAL = {
    "dab_detr": [
        "decoder.layers.0.self_attn.self_attn_query_content_proj.weight",
        "decoder.layers.0.self_attn.self_attn_key_content_proj.weight",
        "decoder.layers.0.self_attn.self_attn_value_proj.weight",
    ],
    "smca_detr": ["decoder.layers.0.self_attn.v_proj.weight"],
    "swin_detr": ["decoder.layers.0.self_attn.v_proj.weight"],
    "d_fine": CONSTANTS,
    "deimv2": CONSTANTS,
}


@pytest.fixture(scope="module")
def built():
    """name -> detector with every parameter moved off its initial value: zeros at the start hide faults and tie scores."""
    return {}


@pytest.fixture
def detector(built, classes):
    def get(name):
        if name not in built:
            torch.manual_seed(0)
            backbone, overrides = TINY[name]
            built[name] = create(name, classes, (128, 128), backbone=backbone, overrides=dict(overrides))
            with torch.no_grad():
                for parameter in built[name].parameters():
                    parameter.add_(0.02 * torch.randn_like(parameter))
        return built[name].eval()

    return get


@pytest.fixture
def pixels():
    return torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(1))


def first_of(queries, count):
    parts = queries.content, queries.position, queries.reference
    return Queries(*(None if part is None else part[:, :count].flip(1) for part in parts))


def test_every_family_that_can_be_named_is_known(classes):
    assert {model.model_type for model in MODELS.values()} == set(FAMILIES)
    assert not any(names.missing(name) for name in MODELS)


@pytest.mark.parametrize("name", TINY)
def test_last_layer_is_the_models_own_answer(detector, pixels, name):
    found = detector(name)
    with torch.no_grad():
        output, answer = found(pixels), found.model(pixel_values=pixels)
    torch.testing.assert_close(output.logits[-1], answer.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(output.boxes[-1], answer.pred_boxes, rtol=0, atol=1e-5)
    assert output.logits.shape == (3, 2, 12, 5 + (found.head == Head.SOFTMAX))
    assert (output.boxes.shape, output.hidden.shape) == ((3, 2, 12, 4), (3, 2, 12, 64))
    assert output.memory.shapes == [(side, side) for side in LEVELS[name]]
    assert [tuple(feature.shape) for feature in output.features] == [(2, 64, side, side) for side in LEVELS[name]]


@pytest.mark.parametrize("name", TINY)
def test_decoding_replays_and_takes_other_queries_without_touching_the_main_ones(detector, pixels, name):
    found = detector(name)
    with torch.no_grad():
        output = found(pixels)
        again = found.decode(output.queries, output.memory)
        other = found.decode(first_of(output.queries, 7), output.memory)
        after = found(pixels)
    for field in ("logits", "boxes", "hidden"):
        torch.testing.assert_close(getattr(again, field), getattr(output, field), rtol=0, atol=1e-5)
        torch.testing.assert_close(getattr(after, field), getattr(output, field), rtol=0, atol=1e-6)
    assert other.logits.shape[:3] == other.boxes.shape[:3] == other.hidden.shape[:3] == (3, 2, 7)


@pytest.mark.parametrize("name", TINY)
def test_every_parameter_learns(detector, labels, pixels, name):
    found = detector(name).train()
    found.zero_grad()
    output = found(pixels, torch.ones(2, 128, 128, dtype=torch.int64), labels=labels(3, 0))
    output.loss.backward()
    idle = {key for key, parameter in found.named_parameters() if parameter.grad is None or not parameter.grad.any()}
    assert idle == {f"model.model.{key}" for key in WITHOUT_SIGNAL.get(name, ())}
    assert output.logits.shape[:3] == (3, 2, 12)


@pytest.mark.parametrize("name", DENOISING + GROUPS)
def test_what_only_training_decodes_is_stripped(detector, labels, pixels, name):
    found, recorded = detector(name).train(), []
    handle = found.model.model.decoder.register_forward_hook(
        lambda _module, _args, kwargs, _output: recorded.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    torch.manual_seed(0)
    output = found(pixels, labels=labels(3, 0))
    torch.manual_seed(0)
    answer = found.model(pixel_values=pixels, labels=labels(3, 0))
    handle.remove()
    assert recorded[0] > 12
    assert output.logits.shape[2] == output.queries.content.shape[1] == output.queries.reference.shape[1] == 12
    torch.testing.assert_close(output.loss, answer.loss, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        again = found.decode(output.queries, output.memory)
    torch.testing.assert_close(again.boxes, output.boxes, rtol=0, atol=1e-5)
    assert all(layer.self_attn.training for layer in found.model.model.decoder.layers)


@pytest.mark.parametrize("name", GROUPS)
def test_in_evaluation_the_loss_has_one_group(detector, labels, pixels, name):
    """The same numbers whatever `group_detr` says, which only training knows."""
    found, losses = detector(name), []
    groups = found.config.group_detr
    with torch.no_grad():
        for found.config.group_detr in (groups, 13):
            losses.append(found(pixels, labels=labels(3, 0)).loss)
    found.config.group_detr = groups
    assert losses[0] == losses[1]


@pytest.mark.parametrize("name", DENOISING)
def test_reading_all_layers_leaves_the_decoder_as_it_was(detector, pixels, name):
    found = detector(name)
    with torch.no_grad():
        assert len(found(pixels).logits) == 3
        assert found.model(pixel_values=pixels).intermediate_logits.shape[1] == 1
    assert not found.model.model.decoder.training


def test_proposals_of_the_encoder_have_a_loss_that_knows_no_classes(detector, labels, pixels):
    """Deformable DETR's loss over all cells against focal, L1 and GIoU written out, with one object to match."""
    found, objects = detector("deformable_detr_two_stage"), labels(1, 0)
    with torch.no_grad():
        whole = found(pixels, labels=objects).loss
        answer = found.model(pixel_values=pixels)
        output = found(pixels)
        of_layers = DeformableDetr().loss(found.model, answer, output.logits, output.boxes, objects)
    logits, boxes = answer.enc_outputs_class, answer.enc_outputs_coord_logits.sigmoid()
    truth = objects[0]["boxes"]
    p = logits[0, :, 0].sigmoid()
    cost = 2 * (0.25 * (1 - p) ** 2 * -(p + 1e-8).log() - 0.75 * p**2 * -(1 - p + 1e-8).log())
    l1, overlap = (boxes[0] - truth).abs().sum(-1), giou(boxes[0], truth[0])
    best = (cost * found.config.class_cost / 2 + found.config.bbox_cost * l1 - found.config.giou_cost * overlap).argmin()
    target = torch.zeros_like(logits)
    target[0, best, 0] = 1
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    wrong = (logits.sigmoid() - target).abs()
    focal = ((0.25 * target + 0.75 * (1 - target)) * wrong**2 * entropy).sum()
    config = found.config
    expected = focal + config.bbox_loss_coefficient * l1[best] + config.giou_loss_coefficient * (1 - overlap[best])
    torch.testing.assert_close(whole - of_layers, expected, rtol=1e-3, atol=1e-3)


def giou(boxes, other):
    """(n, 4) and (4,) in (cx, cy, w, h) -> (n,)."""
    low, high = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
    low2, high2 = other[:2] - other[2:] / 2, other[:2] + other[2:] / 2
    overlap = (torch.minimum(high, high2) - torch.maximum(low, low2)).clamp(min=0).prod(-1)
    union = boxes[:, 2:].prod(-1) + other[2:].prod() - overlap
    hull = (torch.maximum(high, high2) - torch.minimum(low, low2)).prod(-1)
    return overlap / union - (hull - union) / hull


@pytest.mark.parametrize("name", TINY)
def test_saved_and_loaded_it_answers_the_same(detector, pixels, classes, tmp_path, name):
    found = detector(name)
    found.save(tmp_path)
    loaded = load(tmp_path)
    with torch.no_grad():
        own, other = found(pixels), loaded(pixels)
    torch.testing.assert_close(other.logits, own.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(other.boxes, own.boxes, rtol=0, atol=1e-5)
    assert (loaded.class_map, loaded.preprocessing) == (classes, found.preprocessing)
    assert type(loaded.family) is type(found.family)


@pytest.mark.parametrize("name", ["smca_detr", "swin_detr", "dab_detr", "lw_detr", "rf_detr"])
def test_images_need_not_be_square(classes, name):
    backbone, overrides = TINY[name]
    found = create(name, classes, (128, 192), backbone=backbone, overrides=dict(overrides)).eval()
    with torch.no_grad():
        output = found(torch.randn(1, 3, 128, 192))
    cells = LEVELS[name]
    assert output.memory.shapes == [(side, side * 3 // 2) for side in cells]


@pytest.mark.parametrize(
    ("name", "size", "overrides", "backbone", "message"),
    [
        ("lw_detr", (100, 128), {}, None, "multiples of 64; the nearest valid size is 128 128"),
        ("rf_detr", (128, 128), {}, None, "multiples of 56; the nearest valid size is 112 112"),
        ("d_fine", (100, 128), {}, None, "multiples of 32"),
        ("lw_detr", (128, 128), {"num_queries": 65}, None, "among the 64 cells"),
        ("deformable_detr_two_stage", (64, 64), {"num_queries": 86}, "test_resnet", "among the 85 cells"),
        ("lw_detr", (128, 128), {}, "test_resnet", "made for its own, lw_detr_vit; leave the backbone out"),
        ("swin_detr", (128, 128), {}, "swin_tiyn", "swin_tiny"),
        ("swin_detr", (128, 128), {"stages": [5]}, None, "give increasing numbers between 1 and 4"),
        ("lw_detr", (128, 128), {"backbone_config.hiden_size": 32}, None, "hidden_size"),
        ("adamixer", (128, 128), {"d_model": 72}, "test_resnet", "multiple of 32"),
        ("dab_detr", (128, 128), {"hidden_size": 60}, "test_resnet", "not divisible by its 8"),
    ],
)
def test_what_a_family_cannot_take_is_refused_in_a_sentence(classes, name, size, overrides, backbone, message):
    with pytest.raises(UserError, match=message):
        create(name, classes, size, backbone=backbone, overrides=overrides)


def test_queries_never_outnumber_the_cells_they_are_chosen_from(classes):
    small = {"d_model": 64, "decoder_layers": 1, "group_detr": 1} | inside(VIT | {"hidden_size": 36, "num_windows": 4})
    assert create("lw_detr", classes, (64, 64), overrides=small).config.num_queries == 16
    small = {"d_model": 64, "decoder_layers": 1, "encoder_layers": 1}
    found = create("deformable_detr_two_stage", classes, (64, 64), backbone="test_resnet", overrides=small)
    assert found.config.two_stage_num_proposals == 85


def test_a_family_that_transformers_lacks_is_said_to_be_missing(classes, monkeypatch, tmp_path):
    (tmp_path / "models" / "detr").mkdir(parents=True)
    monkeypatch.setattr(names, "find_spec", lambda _: SimpleNamespace(submodule_search_locations=[str(tmp_path)]))
    assert (names.missing("detr"), names.missing("d_fine")) == (False, True)
    with pytest.raises(UserError, match="has no such family; install a newer one"):
        create("d_fine", classes, (128, 128))


def test_weights_of_a_vision_transformer_come_with_a_whole_checkpoint(classes):
    with pytest.raises(UserError, match="come with a whole checkpoint"):
        create("lw_detr", classes, (128, 128), weights="hub")


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_onnx_runtime_agrees(detector, tmp_path, name):
    from leandetr.deployment.agreement import agreement
    from leandetr.deployment.onnx import export_onnx
    from leandetr.deployment.runtimes import OnnxRuntime

    found = detector(name)
    runtime = OnnxRuntime(export_onnx(found, tmp_path / "model.onnx"))
    for images in (1, 3):
        sample = torch.randn(images, 3, 128, 128, generator=torch.Generator().manual_seed(3))
        with torch.no_grad():
            answer = found.model(pixel_values=sample)
        share, _ = agreement((answer.logits, answer.pred_boxes), runtime.run(sample, None), found.head, 1e-4)
        assert share == 1.0
