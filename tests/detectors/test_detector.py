"""What `Detector` promises for every family: the family's own answers and loss, the decoder again on other queries, a folder
that both libraries read."""

import copy
from functools import partial

import pytest
import torch
from transformers import AutoModelForObjectDetection

from leandetr.detectors.checkpoints.load import load
from leandetr.detectors.create import create
from leandetr.heads import Head
from leandetr.structures import Queries

NAMES = ["detr", "conditional_detr", "deformable_detr", "deformable_detr_refine", "rt_detr", "rt_detr_v2"]
REAL_TIME = ["rt_detr", "rt_detr_v2"]
WITH_POSITION = ["detr", "conditional_detr", "deformable_detr", "deformable_detr_refine"]
LEVELS = {"detr": [(4, 4)], "conditional_detr": [(4, 4)]}
LEVELS |= {name: [(16, 16), (8, 8), (4, 4), (2, 2)] for name in ("deformable_detr", "deformable_detr_refine")}
LEVELS |= {name: [(16, 16), (8, 8), (4, 4)] for name in REAL_TIME}

# The content queries of these two families are zeros where they enter the first decoder layer: its self-attention sees equal
# values, and nothing it could learn from them.
WITHOUT_SIGNAL = {
    "detr": [
        "decoder.layers.0.self_attn.k_proj",
        "decoder.layers.0.self_attn.q_proj",
        "decoder.layers.0.self_attn.v_proj.weight",
    ],
    "conditional_detr": [
        "decoder.layers.0.self_attn.k_",
        "decoder.layers.0.self_attn.q_",
        "decoder.layers.0.self_attn.v_proj.weight",
    ],
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
            small = {"d_model": 64, "decoder_layers": 3, "encoder_layers": 1, "num_queries": 12, "decoder_ffn_dim": 64}
            built[name] = create(name, classes, (128, 128), backbone="test_resnet", overrides=small)
            with torch.no_grad():
                for parameter in built[name].parameters():
                    parameter.add_(0.02 * torch.randn_like(parameter))
        return built[name].eval()

    return get


@pytest.fixture
def pixels():
    return torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(1))


def other_queries(name, count=7):
    generator = torch.Generator().manual_seed(2)
    return Queries(
        content=torch.randn(2, count, 64, generator=generator),
        position=torch.randn(2, count, 64, generator=generator) if name in WITH_POSITION else None,
        reference=torch.rand(2, count, 4 if name in REAL_TIME else 2, generator=generator),
    )


@pytest.mark.parametrize("name", NAMES)
def test_last_layer_is_the_models_own_answer(detector, pixels, name):
    found = detector(name)
    with torch.no_grad():
        output, answer = found(pixels), found.model(pixel_values=pixels)
    torch.testing.assert_close(output.logits[-1], answer.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(output.boxes[-1], answer.pred_boxes, rtol=0, atol=1e-5)
    assert output.logits.shape == (3, 2, 12, 5 + (found.head == Head.SOFTMAX))
    assert output.boxes.shape == (3, 2, 12, 4)
    assert output.hidden.shape == (3, 2, 12, 64)
    assert output.loss is None
    assert (output.boxes >= 0).all()
    assert (output.boxes <= 1).all()


@pytest.mark.parametrize("name", NAMES)
def test_features_are_the_memory_as_maps(detector, pixels, name):
    with torch.no_grad():
        output = detector(name)(pixels)
    assert [tuple(feature.shape[-2:]) for feature in output.features] == LEVELS[name] == output.memory.shapes
    flat = torch.cat([feature.flatten(2).transpose(1, 2) for feature in output.features], 1)
    assert torch.equal(flat, output.memory.tokens)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_learns(detector, labels, pixels, name):
    found = detector(name).train()
    found.zero_grad()
    found(pixels, torch.ones(2, 128, 128, dtype=torch.int64), labels=labels(3, 0)).loss.backward()
    parameters = dict(found.named_parameters())
    idle = [key for key, parameter in parameters.items() if parameter.grad is None or not parameter.grad.any()]
    assert [key for key in idle if not any(part in key for part in WITHOUT_SIGNAL.get(name, ()))] == []
    if name in REAL_TIME:
        assert any("denoising_class_embed" in key for key in parameters)


def test_no_block_of_an_untrained_backbone_with_frozen_norms_is_dead(classes):
    small = {"d_model": 32, "decoder_layers": 1, "encoder_layers": 1, "num_queries": 3}
    state = create("detr", classes, (64, 64), backbone="resnet18", overrides=small).model.model.backbone.state_dict()
    scales = [state[key.replace("running_var", "weight")] for key in state if "running_var" in key]
    assert len(scales) == 20
    assert all(scale.any() for scale in scales)


@pytest.mark.parametrize("name", NAMES)
def test_loss_is_the_familys_own_over_all_layers(detector, labels, pixels, name):
    found, targets = detector(name), labels(3, 0)
    with torch.no_grad():
        output = found(pixels, labels=targets)
        config = copy.deepcopy(found.config)
        config.auxiliary_loss = True
        if name in REAL_TIME:  # in evaluation there is no denoising; layers stand second in what its loss takes
            answer = found.model(pixel_values=pixels)
            own = found.model.loss_function(
                output.logits[-1],
                targets,
                torch.device("cpu"),
                output.boxes[-1],
                config,
                outputs_class=output.logits.transpose(0, 1),
                outputs_coord=output.boxes.transpose(0, 1),
                enc_topk_logits=answer.enc_topk_logits,
                enc_topk_bboxes=answer.enc_topk_bboxes,
            )
        else:
            own = found.model.loss_function(
                output.logits[-1], targets, torch.device("cpu"), output.boxes[-1], config, output.logits, output.boxes
            )
    torch.testing.assert_close(output.loss, own[0], rtol=1e-4, atol=1e-4)
    per_layer = [key for key in own[1] if "giou" in key]
    assert len(per_layer) == 3 + (name in REAL_TIME)  # RT-DETR's encoder answers once more


@pytest.mark.parametrize("name", NAMES)
def test_decoding_the_same_queries_replays(detector, pixels, name):
    with torch.no_grad():
        output = detector(name)(pixels)
        again = detector(name).decode(output.queries, output.memory)
    for field in ("logits", "boxes", "hidden"):
        torch.testing.assert_close(getattr(again, field), getattr(output, field), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_decoding_other_queries_leaves_the_main_group_alone(detector, pixels, name):
    found, queries = detector(name), other_queries(name)
    with torch.no_grad():
        output = found(pixels)
        before = {field: getattr(output, field).clone() for field in ("logits", "boxes", "hidden")}
        extra = found.decode(queries, output.memory)
        after = found(pixels)
    assert extra.logits.shape[:3] == extra.boxes.shape[:3] == extra.hidden.shape[:3] == (3, 2, 7)
    for field, value in before.items():
        torch.testing.assert_close(getattr(output, field), value, rtol=0, atol=0)
        torch.testing.assert_close(getattr(after, field), value, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_queries_without_a_part_the_decoder_takes_are_refused(detector, pixels, name):
    with torch.no_grad():
        memory = detector(name)(pixels).memory
    with pytest.raises(ValueError, match="content is missing"):
        detector(name).decode(Queries(), memory)


@pytest.mark.parametrize("name", REAL_TIME)
def test_denoising_queries_are_stripped_and_still_trained(detector, labels, pixels, name):
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
    torch.testing.assert_close(again.boxes, output.boxes, rtol=0, atol=1e-5)  # the groups cannot see each other


def _add(change, _module, args, kwargs):
    return args, kwargs | {"inputs_embeds": kwargs["inputs_embeds"] + change}


@pytest.mark.parametrize("name", WITH_POSITION)
def test_what_lies_in_the_padding_is_not_seen(detector, pixels, name):
    """Another content of the encoder's cells in the right half changes nothing where the mask says padding, else everything."""
    found, half = detector(name), torch.ones(2, 128, 128, dtype=torch.int64)
    half[:, :, 64:] = 0
    changes = []
    for mask in (half, torch.ones_like(half)):
        with torch.no_grad():
            before = found(pixels * half[:, None], mask)
            right = torch.cat([(torch.arange(h * w) % w) >= w / 2 for h, w in before.memory.shapes])
            handle = found.model.model.encoder.register_forward_pre_hook(partial(_add, 5 * right[:, None]), with_kwargs=True)
            after = found(pixels * half[:, None], mask)
            handle.remove()
        changes.append(max((getattr(after, f) - getattr(before, f)).abs().max().item() for f in ("hidden", "logits", "boxes")))
    assert changes[0] < 1e-5
    assert changes[1] > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_saved_and_loaded_it_answers_the_same(detector, pixels, classes, tmp_path, name):
    found = detector(name)
    found.save(tmp_path)
    loaded, plain = load(tmp_path), AutoModelForObjectDetection.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        own = found(pixels)
        for other in (loaded(pixels).boxes[-1], plain(pixel_values=pixels).pred_boxes):
            torch.testing.assert_close(other, own.boxes[-1], rtol=0, atol=1e-6)
    assert loaded.class_map == classes
    assert loaded.preprocessing == found.preprocessing
    assert plain.config.id2label[4] == "cross"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors", "preprocessor_config.json"]


def test_predictions_are_in_pixels_of_the_photograph_and_leave_the_mode_alone(detector, labels, pixels):
    found = detector("detr").train()
    batch = {"pixel_values": pixels, "pixel_mask": torch.ones(2, 128, 128, dtype=torch.int64), "labels": labels(1, 0)}
    answers = found.predict(batch, top_k=5)
    assert found.training
    assert len(answers) == 2
    found.eval()
    with torch.no_grad():
        scores = found.model(**{k: batch[k] for k in ("pixel_values", "pixel_mask")}).logits.softmax(-1)[..., :-1]
    for answer, own in zip(answers, scores):
        assert answer.scores[0] == own.max()
        assert (answer.scores.diff() <= 0).all()
        assert (answer.boxes[:, 2:] >= answer.boxes[:, :2]).all()
        assert answer.boxes[:, [0, 2]].max() > 128  # the photograph is 300 wide, its pixel values 128
        assert 0 <= answer.labels.min() <= answer.labels.max() < 5
